//! imprompt-clip.
