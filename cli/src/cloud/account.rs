//! Who the user is at AWS, by the standard chain of `aws-config`: environment, profile, SSO, web
//! identity, container, instance. Secrets live in the SDK's own types, whose `Debug` hides them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_types::service_config::ServiceConfigKey;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::runtime::Runtime;

use super::http::{Web, is_private};
use crate::talk::{Failure, Result};

/// Credentials that end sooner are asked for anew.
const MARGIN: Duration = Duration::from_secs(300);

/// A service of AWS.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// As in `AWS_ENDPOINT_URL_*`, with blanks.
    pub id: &'static str,
    /// As signatures name it.
    pub signing: &'static str,
    /// Before `.REGION.amazonaws.com`.
    pub host: &'static str,
}

/// The user's settings, and what carries the libraries' futures.
pub struct Account {
    config: SdkConfig,
    keys: Arc<Keys>,
    /// The command's HTTP client.
    pub web: Web,
}

impl Account {
    /// The settings of this process's environment and profile.
    pub fn load(runtime: &Runtime, region: Option<&str>, web: Web) -> Result<Self> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(web.for_sdk());
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        let config = runtime.block_on(loader.load());
        let provider = config.credentials_provider().ok_or_else(no_credentials)?;
        let keys = Arc::new(Keys { provider, last: Mutex::new(None) });
        let account = Account { config, keys, web };
        if let Some(region) = account.config.region()
            && !is_name(region.as_ref())
        {
            return Err(Failure::usage("the region is no name such as eu-west-1"));
        }
        Ok(account)
    }

    /// The region.
    pub fn region(&self) -> Result<&str> {
        self.config.region().map(AsRef::as_ref).ok_or_else(|| {
            Failure::new("no AWS region is set")
                .hint("--region eu-west-1, AWS_REGION, or `region` in ~/.aws/config")
        })
    }

    /// The address of a service that the user's settings name, without a slash at its end: that of
    /// the service alone (`AWS_ENDPOINT_URL_S3`) before that of all (`AWS_ENDPOINT_URL`).
    pub fn named_endpoint(&self, service: Service, allow_http: bool) -> Result<Option<String>> {
        let is_ignored = std::env::var("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
            .is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        if is_ignored {
            return Ok(None);
        }
        let key = ServiceConfigKey::builder()
            .service_id(service.id)
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build()
            .map_err(Failure::new)?;
        let own = self.config.service_config().and_then(|settings| settings.load_config(key));
        let url = own.or_else(|| self.config.endpoint_url().map(str::to_owned));
        if let Some(url) = &url
            && !allow_http
            && !is_private(url)
        {
            return Err(Failure::new(format!(
                "the endpoint of {} that the environment or profile names is neither https nor this machine",
                service.id
            ))
            .hint("check AWS_ENDPOINT_URL; --allow-http if that is meant"));
        }
        Ok(url.map(|url| url.trim_end_matches('/').to_owned()))
    }

    /// The address of a service, without a slash at its end.
    pub fn endpoint(&self, service: Service) -> Result<String> {
        if let Some(url) = self.named_endpoint(service, false)? {
            return Ok(url);
        }
        let region = self.region()?;
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        Ok(format!("https://{}.{region}.{domain}", service.host))
    }

    /// Credentials that hold for some minutes at least.
    pub fn credentials(&self, runtime: &Runtime) -> Result<Credentials> {
        runtime.block_on(self.keys.get()).map_err(|error| {
            // The chain's own words say what was tried; they hold no secrets.
            let no_credentials = no_credentials();
            match std::error::Error::source(&error) {
                Some(why) => no_credentials.of(why),
                None => no_credentials,
            }
        })
    }

    /// The same credentials as `object_store` wants them.
    pub fn for_stores(&self) -> Arc<dyn CredentialProvider<Credential = AwsCredential>> {
        self.keys.clone()
    }
}

/// True of what may be a part of a host name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// What to do without credentials.
pub fn no_credentials() -> Failure {
    Failure::new("no AWS credentials were found").hint(
        "log in with `aws sso login` or `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY; on a machine of AWS give it a role",
    )
}

/// The chain, and what it said last: it asks the network each time.
#[derive(Debug)]
struct Keys {
    provider: SharedCredentialsProvider,
    last: Mutex<Option<Credentials>>,
}

impl Keys {
    async fn get(
        &self,
    ) -> Result<Credentials, aws_credential_types::provider::error::CredentialsError> {
        let last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let holds = |credentials: &Credentials| {
            credentials.expiry().is_none_or(|end| end > SystemTime::now() + MARGIN)
        };
        if let Some(last) = last.filter(holds) {
            return Ok(last);
        }
        let new = self.provider.provide_credentials().await?;
        *self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(new.clone());
        Ok(new)
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let credentials = self.get().await.map_err(|error| {
            object_store::Error::Unauthenticated { path: String::new(), source: Box::new(error) }
        })?;
        Ok(Arc::new(AwsCredential {
            key_id: credentials.access_key_id().to_owned(),
            secret_key: credentials.secret_access_key().to_owned(),
            token: credentials.session_token().map(str::to_owned),
        }))
    }
}
