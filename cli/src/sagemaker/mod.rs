//! SageMaker: the requests of an endpoint's life, and asking it.

pub mod control;
pub mod delete;
pub mod deploy;
pub mod invoke;
pub mod plan;

use crate::cloud::account::Service;

/// The control plane.
pub const SAGEMAKER: Service =
    Service { id: "SageMaker", signing: "sagemaker", host: "api.sagemaker" };

/// Where endpoints are asked.
pub const RUNTIME: Service =
    Service { id: "SageMaker Runtime", signing: "sagemaker", host: "runtime.sagemaker" };

/// What scales them.
pub const SCALING: Service = Service {
    id: "Application Auto Scaling",
    signing: "application-autoscaling",
    host: "application-autoscaling",
};
