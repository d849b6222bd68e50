//! imprompt-caption.
