//! imprompt-text.
