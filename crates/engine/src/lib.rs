//! imprompt-engine.
