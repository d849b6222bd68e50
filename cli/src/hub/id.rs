//! Names of models on a hub.

use std::fmt;

/// A model on a hub: `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    pub(super) name: String,
    pub(super) revision: String,
}

impl HubId {
    /// `text` as an id, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_part = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        let mut parts = name.split('/');
        let is_name = parts.clone().count() == 2 && parts.all(is_part);
        let is_revision = revision.split('/').all(is_part);
        (is_name && is_revision)
            .then(|| HubId { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.revision {
            "main" => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_two_parts_and_maybe_a_revision() {
        let id = HubId::parse("openai/clip-vit-base-patch32").unwrap();
        assert_eq!((&*id.name, &*id.revision), ("openai/clip-vit-base-patch32", "main"));
        let id = HubId::parse("a/b@refs/pr/3").unwrap();
        assert_eq!((id.to_string(), &*id.revision), ("a/b@refs/pr/3".to_owned(), "refs/pr/3"));
        for text in
            ["clip", "./clip/x", "/models/clip", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", ""]
        {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }
}
