//! An open store, and its failures in words.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use super::address::{Address, Kind};
use crate::cloud::account::{Account, Service, no_credentials};
use crate::cloud::http::{Web, is_private};
use crate::talk::{Failure, Result};

const S3: Service = Service { id: "S3", signing: "s3", host: "s3" };

/// A store, and what it can do.
pub struct Store {
    /// Its objects.
    pub objects: Arc<dyn ObjectStore>,
    /// Uploads in parts that outlive this process; `None` where they cannot carry metadata.
    pub parts: Option<Arc<dyn MultipartStore>>,
    /// True where the store copies an object itself, whole and at once.
    pub copies: bool,
    /// Where it is.
    pub address: Address,
    /// How Triton names that place.
    pub triton: String,
}

/// What a user may say about how a store is reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access<'a> {
    /// AWS's region.
    pub region: Option<&'a str>,
    /// Also without encryption to another machine.
    pub allow_http: bool,
}

impl Store {
    /// Opens the store of `address` with the cloud's usual credentials.
    pub fn open(runtime: &Runtime, address: &Address, access: Access<'_>) -> Result<Self> {
        let web = Web::new(access.allow_http);
        let address = address.clone();
        match address.kind.clone() {
            Kind::S3 { endpoint } => s3(runtime, address, endpoint, access),
            Kind::Google => {
                let builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(&address.bucket)
                    .with_retry(retries())
                    .with_http_connector(web);
                let store = Arc::new(builder.build().map_err(|error| explain(&error, &address))?);
                let triton = address.to_string();
                Ok(Store {
                    objects: store.clone(),
                    parts: Some(store),
                    copies: true,
                    address,
                    triton,
                })
            }
            Kind::Azure { account } => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(&address.bucket)
                    .with_retry(retries())
                    .with_http_connector(web);
                if let Some(account) = &account {
                    builder = builder.with_account(account);
                }
                let account = account.or_else(|| std::env::var("AZURE_STORAGE_ACCOUNT_NAME").ok());
                let account = account.as_deref().unwrap_or("ACCOUNT");
                let triton = format!("as://{account}/{}/{}", address.bucket, address.prefix);
                let store = Arc::new(builder.build().map_err(|error| explain(&error, &address))?);
                Ok(Store { objects: store, parts: None, copies: false, address, triton })
            }
        }
    }
}

fn s3(
    runtime: &Runtime,
    address: Address,
    endpoint: Option<String>,
    access: Access<'_>,
) -> Result<Store> {
    let account = Account::load(runtime, access.region, Web::new(access.allow_http))?;
    // Before the first request, so that the failure is one of credentials.
    account.credentials(runtime)?;
    if let Some(endpoint) = &endpoint
        && !access.allow_http
        && !is_private(endpoint)
    {
        return Err(Failure::usage("URL: not https, and not this machine")
            .hint("--allow-http sends the data and signed requests without encryption"));
    }
    let endpoint = match endpoint {
        Some(endpoint) => Some(endpoint),
        None => account.named_endpoint(S3, access.allow_http)?,
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&address.bucket)
        .with_credentials(account.for_stores())
        .with_checksum_algorithm(Checksum::SHA256)
        .with_retry(retries())
        .with_http_connector(account.web.clone());
    let triton = match &endpoint {
        Some(endpoint) => format!("s3://{endpoint}/{}/{}", address.bucket, address.prefix),
        None => address.to_string(),
    };
    builder = match endpoint {
        // Other stores mostly know one region, and any name of it.
        Some(endpoint) => builder
            .with_allow_http(endpoint.starts_with("http:"))
            .with_endpoint(endpoint)
            .with_region(account.region().unwrap_or("us-east-1")),
        // A certificate holds for one name before Amazon's, and so for no dot in it.
        None => builder
            .with_region(account.region()?)
            .with_virtual_hosted_style_request(!address.bucket.contains('.')),
    };
    let store = Arc::new(builder.build().map_err(|error| explain(&error, &address))?);
    Ok(Store { objects: store.clone(), parts: Some(store), copies: true, address, triton })
}

fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(200),
        max_backoff: Duration::from_secs(10),
        ..BackoffConfig::default()
    };
    RetryConfig { backoff, max_retries: 6, ..RetryConfig::default() }
}

/// A store's failure in words, with what would help. The library's own words may repeat headers of
/// the request and the server's whole answer; of that only code and message are told.
pub fn explain(error: &object_store::Error, address: &Address) -> Failure {
    let text = error.to_string();
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(value, _)| value.trim())
    };
    let code = tag("Code");
    let failed = |why: &str| {
        Failure::new(format!("{}: {why}", address.root()))
            .hint("check the network and the address; what was sent already is not sent again")
    };
    match (code, error) {
        (Some("NoSuchBucket" | "ContainerNotFound"), _) => {
            Failure::new(format!("{}: no such bucket", address.root()))
                .hint("make it first, such as with `aws s3 mb`, and check the region")
        }
        (Some("InvalidAccessKeyId" | "UnrecognizedClientException"), _) => {
            Failure::new(format!("{}: the store does not know this access key", address.root()))
                .hint("check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        }
        (Some("SignatureDoesNotMatch"), _) => {
            Failure::new(format!("{}: the signature is not right", address.root()))
                .hint("check AWS_SECRET_ACCESS_KEY and this machine's clock")
        }
        (Some("ExpiredToken"), _) => {
            Failure::new(format!("{}: the credentials have expired", address.root()))
                .hint("log in again, such as with `aws sso login`")
        }
        (Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"), _) => {
            Failure::new(format!("{}: the bucket is in another region", address.root()))
                .hint("--region NAME, or AWS_REGION")
        }
        (_, object_store::Error::PermissionDenied { .. }) => {
            Failure::new(format!("{}: access denied", address.root())).hint(
                "the policy of this user or role, or of the bucket, does not allow it: needed are listing, \
                 reading and writing",
            )
        }
        (_, object_store::Error::Unauthenticated { .. }) if text.contains("CredentialsNotLoaded") => {
            no_credentials()
        }
        (Some(code), _) => {
            failed(&format!("{code}: {}", tag("Message").unwrap_or("the store says no more")))
        }
        _ => failed(&root_cause(error)),
    }
}

/// The innermost error's words: those around it repeat addresses.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    // A body that is no error of a store, such as a page of a proxy.
    let text = text.split(['<', '{', '\n']).next().unwrap_or_default().trim_end_matches([':', ' ']);
    text.chars().take(200).collect()
}
