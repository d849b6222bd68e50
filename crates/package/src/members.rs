//! What goes into a package: every file, where its bytes come from, and which of them are one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use imprompt_error::{Error, Result};
use imprompt_repository::files::io;

/// Where the bytes of a member come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Made for the package.
    Bytes(Vec<u8>),
    /// A file, and its length when it was listed.
    File(PathBuf, u64),
    /// The member of that path, which comes before.
    Link(String),
}

impl Content {
    /// Bytes that are to be read.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, bytes) => *bytes,
            Content::Link(_) => 0,
        }
    }
}

/// The members, by their paths in the package.
#[derive(Debug, Default)]
pub(crate) struct Members {
    all: BTreeMap<String, Listed>,
}

#[derive(Debug)]
enum Listed {
    Bytes(Vec<u8>),
    File { source: PathBuf, bytes: u64, identity: (u64, u64) },
}

impl Members {
    /// Adds the files of the folder `source`, and of those in it, as `path/...`.
    ///
    /// # Errors
    /// Those of [`io`] naming what cannot be read; `Unsupported` naming what is neither a file nor a folder, or has a name that a
    /// package cannot have: a link could lead out of the repository.
    pub(crate) fn add_folder(&mut self, source: &Path, path: &str) -> Result<()> {
        let failed = |error: &std::io::Error| io("list", source, error);
        for entry in fs::read_dir(source).map_err(|error| failed(&error))? {
            let entry = entry.map_err(|error| failed(&error))?;
            let name = entry.file_name().into_string().ok();
            let name =
                name.filter(|name| !name.chars().any(char::is_control)).ok_or_else(|| {
                    Error::unsupported(format!(
                        "{}: a name that is no plain text",
                        source.display()
                    ))
                })?;
            let (from, to) = (entry.path(), format!("{path}/{name}"));
            let kind = entry.file_type().map_err(|error| failed(&error))?;
            if kind.is_dir() {
                self.add_folder(&from, &to)?;
            } else if kind.is_file() {
                self.add_file(&from, to)?;
            } else {
                return Err(Error::unsupported(format!(
                    "{}: a link or special file; files and folders alone are packed",
                    from.display()
                )));
            }
        }
        Ok(())
    }

    /// Adds the file `source` as `path`.
    ///
    /// # Errors
    /// As [`Self::add_folder`].
    pub(crate) fn add_file(&mut self, source: &Path, path: String) -> Result<()> {
        let metadata = fs::metadata(source).map_err(|error| io("look at", source, &error))?;
        let identity = (metadata.dev(), metadata.ino());
        let listed = Listed::File { source: source.to_owned(), bytes: metadata.len(), identity };
        self.all.insert(path, listed);
        Ok(())
    }

    /// Adds a member of these bytes, in the place of a file of that path.
    pub(crate) fn add_bytes(&mut self, path: String, bytes: Vec<u8>) {
        self.all.insert(path, Listed::Bytes(bytes));
    }

    /// Every member in the order of the package. Of several that are one file the first has the
    /// bytes.
    pub(crate) fn contents(&self) -> Vec<(&str, Content)> {
        let mut first: HashMap<(u64, u64), &str> = HashMap::new();
        let mut content = |path, listed: &Listed| match listed {
            Listed::Bytes(bytes) => Content::Bytes(bytes.clone()),
            Listed::File { source, bytes, identity } => match first.get(identity) {
                Some(same) => Content::Link((*same).to_owned()),
                None => {
                    first.insert(*identity, path);
                    Content::File(source.clone(), *bytes)
                }
            },
        };
        let members = self.all.iter().map(|(path, listed)| (path.as_str(), listed));
        members.map(|(path, listed)| (path, content(path, listed))).collect()
    }
}
