//! imprompt-stage.
