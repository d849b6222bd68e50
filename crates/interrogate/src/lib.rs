//! imprompt-interrogate.
