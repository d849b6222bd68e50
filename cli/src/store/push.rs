//! From files here to objects there: what the store has already is not sent again, and names of
//! one file are copied there.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _};
use imprompt_repository::{Progress, Unit};
use object_store::path::Path as Key;
use object_store::{Attribute, GetOptions, ObjectStore as _, ObjectStoreExt as _};
use serde::Serialize;

use super::files::Local;
use super::open::{Store, explain};
use super::parts::{self, Pace};
use crate::talk::{Failure, Result};

/// Largest object that S3 copies at once.
const COPY_LIMIT: u64 = 5 << 30;

/// Calls without a body that are under way at once.
const LOOKS: usize = 16;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// Sent.
    Uploaded,
    /// Made there, from one of the same content.
    Copied,
    /// There already.
    Unchanged,
    /// Removed there.
    Deleted,
}

/// One object; a line of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Pushed {
    /// Its address.
    pub url: String,
    /// What happened to it.
    pub done: Done,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes; of what was deleted `null`.
    pub sha256: Option<String>,
}

/// Pushes `files` to their keys. With `prune` what else lies at the address is removed.
pub async fn push(
    store: &Store,
    files: &[(Local, String)],
    prune: bool,
    pace: Pace,
    progress: &dyn Progress,
) -> Result<(Vec<Pushed>, Vec<String>)> {
    let keys: Vec<Key> = files
        .iter()
        .map(|(_, key)| Key::parse(key).map_err(Failure::new))
        .collect::<Result<_>>()?;
    let there = there(store, files).await?;
    let unchanged: Vec<bool> = futures_util::stream::iter(files.iter().zip(&keys))
        .map(|((file, _), key)| is_there(store, &there, file, key))
        .buffered(LOOKS)
        .try_collect()
        .await?;
    let mut plan = Plan::new(files, &unchanged, store.copies);
    let run = Run { store, files, keys: &keys, pace, progress };
    progress.start("pushing", plan.bytes(files), Unit::Bytes);
    let result = run.all(&mut plan).await;
    progress.finish();
    result?;
    let mut pushed: Vec<_> = files
        .iter()
        .zip(plan.0)
        .map(|((file, key), step)| Pushed {
            url: store.address.url(key),
            done: step.done(),
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
        })
        .collect();
    let surplus = surplus(&there, &keys);
    if !prune {
        return Ok((pushed, surplus.iter().map(|key| store.address.url(key.as_ref())).collect()));
    }
    for key in surplus {
        store.objects.delete(&key).await.map_err(|error| explain(&error, &store.address))?;
        let bytes = there[&key];
        let url = store.address.url(key.as_ref());
        pushed.push(Pushed { url, done: Done::Deleted, bytes, sha256: None });
    }
    Ok((pushed, vec![]))
}

/// Lengths of the objects that are at the address.
async fn there(store: &Store, files: &[(Local, String)]) -> Result<HashMap<Key, u64>> {
    let prefix = Key::parse(&store.address.prefix).map_err(Failure::new)?;
    let is_one = matches!(files, [(_, key)] if *key == store.address.prefix);
    let failed = |error: object_store::Error| explain(&error, &store.address);
    if is_one {
        return match store.objects.head(&prefix).await {
            Ok(meta) => Ok(HashMap::from([(meta.location, meta.size)])),
            // Whether it is the bucket that is missing, the upload says.
            Err(object_store::Error::NotFound { .. }) => Ok(HashMap::new()),
            Err(error) => Err(failed(error)),
        };
    }
    let listed = store.objects.list(Some(&prefix)).map_ok(|meta| (meta.location, meta.size));
    listed.try_collect().await.map_err(failed)
}

/// True where the object of `key` has the file's content, by length and the SHA-256 that it was
/// pushed with.
async fn is_there(
    store: &Store,
    there: &HashMap<Key, u64>,
    file: &Local,
    key: &Key,
) -> Result<bool> {
    if there.get(key) != Some(&file.bytes) {
        return Ok(false);
    }
    let options = GetOptions { head: true, ..Default::default() };
    let got = store.objects.get_opts(key, options).await;
    let got = got.map_err(|error| explain(&error, &store.address))?;
    let has = got.attributes.get(&Attribute::Metadata("sha256".into()));
    Ok(has.is_some_and(|has| **has == *file.sha256))
}

/// Objects that are there and in no list.
fn surplus(there: &HashMap<Key, u64>, keys: &[Key]) -> Vec<Key> {
    let mut surplus: Vec<_> = there.keys().filter(|key| !keys.contains(key)).cloned().collect();
    surplus.sort();
    surplus
}

/// What is to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Upload,
    /// Of the file with this index.
    Copy(usize),
}

impl Step {
    fn done(self) -> Done {
        match self {
            Step::Nothing => Done::Unchanged,
            Step::Upload => Done::Uploaded,
            Step::Copy(_) => Done::Copied,
        }
    }
}

/// A step a file.
struct Plan(Vec<Step>);

impl Plan {
    /// Of the names of one file one is sent, unless one is there; the others are copied.
    fn new(files: &[(Local, String)], unchanged: &[bool], copies: bool) -> Self {
        let mut first: HashMap<(u64, u64), usize> = HashMap::new();
        let with_there_first = |index: &usize| (!unchanged[*index], *index);
        let mut order: Vec<usize> = (0..files.len()).collect();
        order.sort_by_key(with_there_first);
        let mut steps = vec![Step::Nothing; files.len()];
        for index in order {
            let (file, _) = &files[index];
            let may_copy = copies && (1..=COPY_LIMIT).contains(&file.bytes);
            let same = first.get(&file.identity).copied().filter(|_| may_copy);
            steps[index] = match (unchanged[index], same) {
                (true, _) => Step::Nothing,
                (false, Some(same)) => Step::Copy(same),
                (false, None) => Step::Upload,
            };
            first.entry(file.identity).or_insert(index);
        }
        Plan(steps)
    }

    fn bytes(&self, files: &[(Local, String)]) -> u64 {
        let uploads = self.0.iter().zip(files).filter(|(step, _)| **step == Step::Upload);
        uploads.map(|(_, (file, _))| file.bytes).sum()
    }
}

struct Run<'a> {
    store: &'a Store,
    files: &'a [(Local, String)],
    keys: &'a [Key],
    pace: Pace,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Small files side by side, large ones one after the other with their parts side by side,
    /// then the copies; and what a server reads first at the end.
    async fn all(&self, plan: &mut Plan) -> Result<()> {
        for last in [false, true] {
            let of = |wanted: fn(&Step) -> bool| {
                let steps = plan.0.iter().enumerate();
                let steps = steps.filter(move |(_, step)| wanted(step));
                steps.filter(move |(index, _)| self.files[*index].0.is_last() == last)
            };
            let uploads: Vec<usize> =
                of(|step| *step == Step::Upload).map(|(index, _)| index).collect();
            let (large, small): (Vec<usize>, Vec<usize>) =
                uploads.into_iter().partition(|index| self.files[*index].0.bytes > self.pace.part);
            futures_util::stream::iter(small)
                .map(|index| self.put(index))
                .buffer_unordered(self.pace.parallel)
                .try_collect::<()>()
                .await?;
            for index in large {
                self.upload(index).await?;
            }
            let copies: Vec<(usize, usize)> = of(|step| matches!(step, Step::Copy(_)))
                .filter_map(|(index, step)| match step {
                    Step::Copy(from) => Some((*from, index)),
                    _ => None,
                })
                .collect();
            futures_util::stream::iter(copies)
                .map(|(from, to)| parts::copy(self.store, &self.keys[from], &self.keys[to]))
                .buffer_unordered(self.pace.parallel)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    async fn put(&self, index: usize) -> Result<()> {
        let (file, key) = (&self.files[index].0, &self.keys[index]);
        parts::put(self.store, key, file).await.map_err(|failure| failure.of(&file.name))?;
        self.progress.advance(file.bytes);
        Ok(())
    }

    async fn upload(&self, index: usize) -> Result<()> {
        let (file, key) = (&self.files[index].0, &self.keys[index]);
        let had = parts::upload(self.store, key, file, self.pace, self.progress).await;
        let had = had.map_err(|failure| failure.of(&file.name))?;
        if had > 0 {
            self.progress.say(&format!(
                "{}: {:.1} of {:.1} MB had been sent before",
                file.name,
                had as f64 / 1e6,
                file.bytes as f64 / 1e6
            ));
        }
        // The store checked every part; this is that they became one object.
        match self.store.objects.head(key).await {
            Ok(meta) if meta.size == file.bytes => Ok(()),
            Ok(meta) => Err(Failure::new(format!(
                "{}: the store has {} bytes of {}",
                file.name, meta.size, file.bytes
            ))
            .hint("run the same command again")),
            Err(error) => Err(explain(&error, &self.store.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_are_sent_once() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        std::fs::hard_link(folder.path().join("a"), folder.path().join("c")).unwrap();
        let files = super::super::files::repository(folder.path(), &imprompt_repository::Silent);
        let files: Vec<_> =
            files.unwrap().into_iter().map(|file| (file.clone(), file.name)).collect();
        let plan = |unchanged: [bool; 3], copies| Plan::new(&files, &unchanged, copies).0;
        assert_eq!(plan([false; 3], true), [Step::Upload, Step::Upload, Step::Copy(0)]);
        assert_eq!(plan([false; 3], false), [Step::Upload; 3]);
        assert_eq!(plan([false, true, true], true), [Step::Copy(2), Step::Nothing, Step::Nothing]);
        assert_eq!(plan([true; 3], true), [Step::Nothing; 3]);
    }
}
