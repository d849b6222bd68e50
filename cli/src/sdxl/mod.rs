//! The last step of the AWS sample: the prompt of a picture, in the style of a painting, as the
//! request of Stability's SDXL on SageMaker.

pub mod request;
pub mod style;
