//! imprompt-graph.
