//! The term lists of clip-interrogator 0.6.0, out of that package's wheel. They are not part of
//! this project; the wheel is fetched once, checked against its SHA-256, and kept.

use std::io::Read as _;
use std::path::PathBuf;

use imprompt_repository::{Progress as _, Unit};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::installed;
use crate::talk::{Bars, Failure, Result};

const PACKAGE: &str = "clip-interrogator";
const WHEEL: &str = "clip_interrogator-0.6.0-py3-none-any.whl";
const SHA256: &str = "cd7c6bf9db170f005b4179e943fc1658aa0f8eebcc75ab3428b0a992aaeabd1c";

/// The five lists, in the wheel's `clip_interrogator/data/`.
const LISTS: [&str; 5] =
    ["artists.txt", "flavors.txt", "mediums.txt", "movements.txt", "negative.txt"];

/// The package index when PIP_INDEX_URL names none.
const INDEX: &str = "https://pypi.org/simple";

/// Most bytes taken of an index page, of the wheel, and of one list.
const LIMIT: u64 = 16 << 20;

/// A folder with the five lists.
pub fn term_lists(bars: &Bars) -> Result<PathBuf> {
    let cache = installed::cache()
        .ok_or_else(|| Failure::new("neither $XDG_CACHE_HOME nor $HOME says where the cache is"))?;
    let folder = cache.join("vocabularies/clip-interrogator-0.6.0");
    if LISTS.iter().all(|name| folder.join(name).is_file()) {
        return Ok(folder);
    }
    let wheel = fetch(bars)?;
    unpack(&wheel, &folder)?;
    Ok(folder)
}

/// The wheel's bytes.
fn fetch(bars: &Bars) -> Result<Vec<u8>> {
    // The system's certificates, as pip's users expect behind a company's proxy.
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let agent: Agent = Agent::config_builder().tls_config(tls).build().into();
    let index = installed::variable("PIP_INDEX_URL")
        .map_or_else(|| INDEX.to_owned(), |url| url.to_string_lossy().into_owned());
    let page_url = format!("{}/{PACKAGE}/", index.trim_end_matches('/'));
    let page = get(agent
        .get(&page_url)
        .header("Accept", "application/vnd.pypi.simple.v1+json, text/html;q=0.5"))?;
    let page = String::from_utf8_lossy(&page);
    let url = from_json(&page).or_else(|| from_html(&page)).ok_or_else(|| {
        Failure::new(format!("the package index lists no {WHEEL}")).hint(
            "PIP_INDEX_URL may name another index; or take the *.txt lists out of the wheel \
             yourself and pass their folder",
        )
    })?;
    let url = absolute(&page_url, &url);
    bars.start(&format!("downloading {WHEEL}"), 0, Unit::Bytes);
    let wheel = get(agent.get(&url));
    bars.finish();
    let wheel = wheel?;
    let found: String = Sha256::digest(&wheel).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != SHA256 {
        return Err(Failure::new(format!("{WHEEL}: SHA-256 is {found}, expected {SHA256}"))
            .hint("the index gave another file than the one this version of imprompt knows"));
    }
    Ok(wheel)
}

fn get(request: ureq::RequestBuilder<ureq::typestate::WithoutBody>) -> Result<Vec<u8>> {
    let failed = |error: ureq::Error| {
        Failure::new(format!("the package index: {error}")).hint(
            "check the network and $PIP_INDEX_URL, or pass a folder that holds the *.txt lists",
        )
    };
    let mut answer = request.call().map_err(failed)?;
    answer.body_mut().with_config().limit(LIMIT).read_to_vec().map_err(failed)
}

/// The wheel's address in the index's JSON form (PEP 691).
fn from_json(page: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: String,
        url: String,
    }
    let page: Page = serde_json::from_str(page).ok()?;
    page.files.into_iter().find(|file| file.filename == WHEEL).map(|file| file.url)
}

/// The wheel's address in the index's HTML form (PEP 503).
fn from_html(page: &str) -> Option<String> {
    let links = page.split("href=").skip(1);
    let mut urls = links.filter_map(|rest| {
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (url, _) = rest[1..].split_once(quote)?;
        Some(url.split('#').next().unwrap_or(url).replace("&amp;", "&"))
    });
    urls.find(|url| url.rsplit('/').next() == Some(WHEEL))
}

/// `url` as seen from the page at `base`.
fn absolute(base: &str, url: &str) -> String {
    if url.contains("://") {
        return url.to_owned();
    }
    let scheme_end = base.find("://").map_or(0, |at| at + 3);
    let host_end = base[scheme_end..].find('/').map_or(base.len(), |at| at + scheme_end);
    if let Some(rest) = url.strip_prefix("//") {
        return format!("{}//{rest}", &base[..scheme_end.saturating_sub(2)]);
    }
    if url.starts_with('/') {
        return format!("{}{url}", &base[..host_end]);
    }
    let mut parts: Vec<&str> = base[host_end..].split('/').collect();
    parts.pop();
    for part in url.split('/') {
        match part {
            "." => {}
            ".." => {
                if parts.len() > 1 {
                    parts.pop();
                }
            }
            part => parts.push(part),
        }
    }
    format!("{}{}", &base[..host_end], parts.join("/"))
}

/// Puts the lists of `wheel` into `folder`, which appears whole.
fn unpack(wheel: &[u8], folder: &std::path::Path) -> Result<()> {
    let failed = |error: String| Failure::new(format!("{WHEEL}: {error}"));
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(wheel))
        .map_err(|error| failed(error.to_string()))?;
    let parent = folder.parent().unwrap_or(folder);
    let written = |error: std::io::Error| Failure::new(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(parent).map_err(written)?;
    let partial = tempfile::tempdir_in(parent).map_err(written)?;
    for name in LISTS {
        let entry = archive
            .by_name(&format!("clip_interrogator/data/{name}"))
            .map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::new();
        entry.take(LIMIT).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
        std::fs::write(partial.path().join(name), bytes).map_err(written)?;
    }
    // A folder that another run made meanwhile holds the same.
    match std::fs::rename(partial.path(), folder) {
        Err(error) if !folder.is_dir() => Err(written(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_index_are_read() {
        let json = format!(
            r#"{{"files": [{{"filename": "x.whl", "url": "x"}}, {{"filename": "{WHEEL}", "url": "../p/{WHEEL}"}}]}}"#
        );
        assert_eq!(from_json(&json).unwrap(), format!("../p/{WHEEL}"));
        let html = format!("<a href=\"x.whl\">x</a> <a href='/p/{WHEEL}#sha256=0'>y</a>");
        assert_eq!(from_html(&html).unwrap(), format!("/p/{WHEEL}"));
        assert_eq!(from_json("<html>"), None);
        assert_eq!(from_html("<a href=x.whl>"), None);
    }

    #[test]
    fn the_lists_of_a_wheel_are_unpacked_whole_or_not_at_all() {
        use std::io::Write as _;
        let wheel = |names: &[&str]| {
            let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
            for name in names {
                let path = format!("clip_interrogator/data/{name}");
                archive.start_file(path, zip::write::SimpleFileOptions::default()).unwrap();
                archive.write_all(name.as_bytes()).unwrap();
            }
            archive.finish().unwrap().into_inner()
        };
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("vocabularies/lists");
        assert!(unpack(&wheel(&LISTS[1..]), &folder).is_err());
        assert!(!folder.exists());
        unpack(&wheel(&LISTS), &folder).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("mediums.txt")).unwrap(), "mediums.txt");
        unpack(&wheel(&LISTS), &folder).unwrap();
        assert_eq!(std::fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
        assert!(unpack(b"no zip", &folder).is_err());
    }

    #[test]
    fn addresses_are_seen_from_the_page() {
        let base = "http://host:1/simple/clip-interrogator/";
        assert_eq!(absolute(base, "https://a/b"), "https://a/b");
        assert_eq!(absolute(base, "//a/b"), "http://a/b");
        assert_eq!(absolute(base, "/a"), "http://host:1/a");
        assert_eq!(absolute(base, "a"), "http://host:1/simple/clip-interrogator/a");
        assert_eq!(absolute(base, "../../p/./a"), "http://host:1/p/a");
        assert_eq!(absolute(base, "../../../../a"), "http://host:1/a");
    }
}
