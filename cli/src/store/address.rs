//! Addresses of object stores: `s3://BUCKET/PREFIX`, Triton's `s3://http://HOST:PORT/BUCKET/PREFIX`,
//! `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `abfss://CONTAINER@ACCOUNT.../PREFIX`.

use std::fmt;

use crate::talk::{Failure, Result};

/// Which kind of store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Amazon S3, or what speaks its protocol at `endpoint`.
    S3 {
        /// Scheme and host that the address itself names.
        endpoint: Option<String>,
    },
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure {
        /// The account that the address itself names.
        account: Option<String>,
    },
}

/// A place in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The kind of store.
    pub kind: Kind,
    /// All before the prefix, without a slash at its end: `s3://bucket`.
    root: String,
    /// Bucket or container.
    pub bucket: String,
    /// Path in it, without slashes at its ends.
    pub prefix: String,
    /// True where the address ends in a slash.
    is_folder: bool,
}

/// What an address may look like.
const FORMS: &str = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                     abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX";

impl Address {
    /// Reads an address. Messages never repeat it: it may hold a password or a signature.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong =
            |what: &str| Failure::usage(format!("URL: {what}")).hint(format!("allowed: {FORMS}"));
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| wrong("is no address of an object store"))?;
        if url.contains(['?', '#']) || url.chars().any(char::is_control) {
            return Err(wrong("has `?`, `#` or control characters"));
        }
        let (endpoint, rest) = match rest.split_once("://") {
            // As Triton spells stores other than Amazon's.
            Some((inner @ ("http" | "https"), rest)) if scheme == "s3" => {
                let (host, rest) =
                    rest.split_once('/').ok_or_else(|| wrong("has no bucket after the host"))?;
                (Some(format!("{inner}://{host}")), rest)
            }
            Some(_) => return Err(wrong("has two schemes")),
            None => (None, rest),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (bucket, account) = match authority.split_once('@') {
            Some((bucket, host)) if matches!(scheme, "abfs" | "abfss") => {
                (bucket, Some(host.split('.').next().unwrap_or_default().to_owned()))
            }
            _ => (authority, None),
        };
        let is_name = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let good_account = account.as_deref().is_none_or(is_name);
        let good_host = endpoint.as_deref().is_none_or(|endpoint| !endpoint.contains('@'));
        if !is_name(bucket) || !good_account || !good_host {
            return Err(wrong("the bucket is no name of letters, digits, `-`, `_` and `.`"));
        }
        let kind = match scheme {
            "s3" => Kind::S3 { endpoint: endpoint.clone() },
            "gs" => Kind::Google,
            "az" | "abfs" | "abfss" => Kind::Azure { account },
            _ => return Err(wrong("is of a scheme that is not known")),
        };
        let prefix = path.strip_suffix('/').unwrap_or(path);
        if prefix
            .split('/')
            .any(|part| matches!(part, "." | "..") || (part.is_empty() && !prefix.is_empty()))
        {
            return Err(wrong("has an empty part, `.` or `..` in its path"));
        }
        let root = match &endpoint {
            Some(endpoint) => format!("s3://{endpoint}/{bucket}"),
            None => format!("{scheme}://{authority}"),
        };
        Ok(Address {
            kind,
            root,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            is_folder: path.is_empty() || path.ends_with('/'),
        })
    }

    /// The same store, at the place of one file: this place where it ends in `.tar.gz`, else
    /// `name` in this folder.
    #[must_use]
    pub fn for_file(&self, name: &str) -> Self {
        match !self.is_folder && self.prefix.ends_with(".tar.gz") {
            true => self.clone(),
            false => Address { prefix: self.key(name), is_folder: false, ..self.clone() },
        }
    }

    /// The key of `name` in this folder.
    pub fn key(&self, name: &str) -> String {
        match self.prefix.is_empty() {
            true => name.to_owned(),
            false => format!("{}/{name}", self.prefix),
        }
    }

    /// Scheme and bucket.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The address of a key.
    pub fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.root)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url(&self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let cases = [
            ("s3://bucket", "bucket", "", Kind::S3 { endpoint: None }),
            ("s3://my.bucket/a/b/", "my.bucket", "a/b", Kind::S3 { endpoint: None }),
            (
                "s3://http://127.0.0.1:9000/bucket/a",
                "bucket",
                "a",
                Kind::S3 { endpoint: Some("http://127.0.0.1:9000".into()) },
            ),
            ("gs://bucket/a", "bucket", "a", Kind::Google),
            ("az://box/a", "box", "a", Kind::Azure { account: None }),
            (
                "abfss://box@me.dfs.core.windows.net/a",
                "box",
                "a",
                Kind::Azure { account: Some("me".into()) },
            ),
        ];
        for (url, bucket, prefix, kind) in cases {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (&*address.bucket, &*address.prefix, &address.kind),
                (bucket, prefix, &kind)
            );
            assert_eq!(address.to_string().trim_end_matches('/'), url.trim_end_matches('/'));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for url in [
            "bucket/a",
            "ftp://secret/a",
            "s3://key:secret@bucket/a",
            "s3://",
            "s3://bucket//a",
            "s3://bucket/../a",
            "s3://bucket/a?secret=1",
            "s3://http://127.0.0.1",
            "s3://http://secret@h/bucket",
            "gs://http://h/bucket",
            "abfss://box@/a",
        ] {
            let failure = Address::parse(url).unwrap_err();
            assert_eq!(failure.code(), 2, "{url}");
            assert!(!failure.message().contains("secret"), "{url}");
        }
    }

    #[test]
    fn a_package_has_its_name_or_the_one_it_is_given() {
        let at = |url: &str| Address::parse(url).unwrap().for_file("m.tar.gz").to_string();
        assert_eq!(at("s3://b"), "s3://b/m.tar.gz");
        assert_eq!(at("s3://b/models/"), "s3://b/models/m.tar.gz");
        assert_eq!(at("s3://b/models"), "s3://b/models/m.tar.gz");
        assert_eq!(at("s3://b/models/x.tar.gz"), "s3://b/models/x.tar.gz");
        assert_eq!(at("s3://b/x.tar.gz/"), "s3://b/x.tar.gz/m.tar.gz");
    }
}
