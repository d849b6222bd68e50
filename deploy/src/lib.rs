//! What runs imprompt on a cluster is data: `kserve/`, `helm/` and `schemas/` beside this file. This
//! crate is their tests.

#![forbid(unsafe_code)]
