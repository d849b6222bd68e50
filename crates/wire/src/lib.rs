//! imprompt-wire.
