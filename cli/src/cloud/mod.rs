//! What the commands that talk to clouds have in common: the HTTP client under the clouds'
//! libraries, who the user is there, and signed calls.

pub mod account;
pub mod call;
pub mod http;

use tokio::runtime::{Builder, Runtime};

use crate::talk::{Failure, Result};

/// What carries the libraries' futures. Their calls block threads of its pool.
pub fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().map_err(Failure::new)
}

#[cfg(test)]
mod tests {
    use super::http::is_private;

    #[test]
    fn without_encryption_only_to_this_machine_and_the_metadata_services() {
        let private = [
            "https://s3.eu-west-1.amazonaws.com/b",
            "http://127.0.0.1:5000",
            "http://127.9.9.9/x",
            "http://localhost:1/",
            "http://[::1]:8080/x",
            "http://169.254.169.254/latest",
            "http://169.254.170.2/v2",
            "http://metadata.google.internal/computeMetadata",
        ];
        for url in private {
            assert!(is_private(url), "{url}");
        }
        for url in [
            "http://s3.amazonaws.com",
            "http://10.0.0.1",
            "http://localhost.evil.org",
            "ftp://127.0.0.1",
        ] {
            assert!(!is_private(url), "{url}");
        }
    }
}
