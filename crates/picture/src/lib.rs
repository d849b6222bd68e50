//! imprompt-picture.
