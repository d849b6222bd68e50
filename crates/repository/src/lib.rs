//! imprompt-repository.
