//! Uploads in parts that go on where they stopped, also those of a process that was killed: which
//! parts the store has is written down beside the user's caches. The stores' own list of parts is
//! not within `object_store`; what is written down is what the store said when it took a part.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use imprompt_repository::Progress;
use imprompt_repository::files::hex;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, ObjectStoreExt as _, PutMultipartOptions, PutPayload, WriteMultipart,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::Local;
use super::open::{Store, explain};
use crate::installed;
use crate::talk::{Failure, Result};

/// Most parts of an upload that every store allows.
const MOST_PARTS: u64 = 10_000;

/// How files are sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes of a part, at least; larger files have larger parts.
    pub part: u64,
    /// Parts, or files, that are under way at once.
    pub parallel: usize,
}

/// An upload that has begun.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Begun {
    /// The store's name of it.
    upload: String,
    part_bytes: u64,
    /// By their index, what the store said when it took them.
    taken: BTreeMap<usize, String>,
}

/// Where an upload is written down.
struct Record(Option<PathBuf>);

impl Record {
    /// Of this content to this place.
    fn of(url: &str, file: &Local) -> Self {
        let name = hex(&Sha256::digest(format!("{url}\n{}", file.sha256)));
        Record(installed::cache().map(|cache| cache.join(format!("uploads/{name}.json"))))
    }

    fn read(&self) -> Option<Begun> {
        serde_json::from_slice(&fs::read(self.0.as_ref()?).ok()?).ok()
    }

    /// Without a place to write the upload is one that cannot go on later, and no failure.
    fn write(&self, begun: &Begun) {
        let write = |path: &Path| -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec(begun)?)?;
            file.persist(path)?;
            Ok(())
        };
        let _ = self.0.as_deref().map(write);
    }

    fn remove(&self) {
        let _ = self.0.as_ref().map(fs::remove_file);
    }
}

/// SHA-256 as metadata of an object.
pub fn attributes(file: &Local) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata("sha256".into()), file.sha256.clone())])
}

/// Sends a file in parts; gives the bytes that an earlier run had sent.
pub async fn upload(
    store: &Store,
    key: &Key,
    file: &Local,
    pace: Pace,
    progress: &dyn Progress,
) -> Result<u64> {
    let part_bytes = pace.part.max(file.bytes.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
    let reader = Arc::new(
        fs::File::open(&file.path).map_err(|error| Failure::new(error).of(file.path.display()))?,
    );
    let Some(parts) = &store.parts else {
        stream(store, key, file, &reader, Pace { part: part_bytes, ..pace }, progress).await?;
        return Ok(0);
    };
    let record = Record::of(&store.address.url(key.as_ref()), file);
    let earlier = record.read().filter(|begun| begun.part_bytes >= 5 << 20);
    let had = earlier.is_some();
    let sender = Sender { parts: &**parts, key, file, reader, record, pace };
    match sender.send(earlier, part_bytes, progress).await {
        // The store has forgotten it, or cleaned up.
        Err(error) if had && is_gone(&error) => {
            sender.record.remove();
            sender.send(None, part_bytes, progress).await
        }
        sent => sent,
    }
    .map_err(|error| match error {
        object_store::Error::Generic { store: CHANGED, source } => Failure::new(source),
        error => explain(&error, &store.address),
    })
}

/// Marks failures of reading here.
const CHANGED: &str = "the file";

fn is_gone(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
        || error.to_string().contains("NoSuchUpload")
}

struct Sender<'a> {
    parts: &'a dyn MultipartStore,
    key: &'a Key,
    file: &'a Local,
    reader: Arc<fs::File>,
    record: Record,
    pace: Pace,
}

impl Sender<'_> {
    /// Sends what `earlier` lacks; gives the bytes it had.
    async fn send(
        &self,
        earlier: Option<Begun>,
        part_bytes: u64,
        progress: &dyn Progress,
    ) -> object_store::Result<u64> {
        let mut begun = match earlier {
            Some(begun) => begun,
            None => {
                let options =
                    PutMultipartOptions { attributes: attributes(self.file), ..Default::default() };
                let upload = self.parts.create_multipart_opts(self.key, options).await?;
                Begun { upload, part_bytes, taken: BTreeMap::new() }
            }
        };
        let count =
            usize::try_from(self.file.bytes.div_ceil(begun.part_bytes)).unwrap_or(usize::MAX);
        begun.taken.retain(|index, _| *index < count);
        let bytes_of = |index: usize, part_bytes: u64| {
            part_bytes.min(self.file.bytes - index as u64 * part_bytes)
        };
        let had = begun.taken.keys().map(|index| bytes_of(*index, begun.part_bytes)).sum();
        progress.advance(had);
        self.record.write(&begun);
        let (upload, size) = (begun.upload.clone(), begun.part_bytes);
        let missing: Vec<usize> =
            (0..count).filter(|index| !begun.taken.contains_key(index)).collect();
        let mut sent = futures_util::stream::iter(missing)
            .map(|index| {
                let upload = &upload;
                async move {
                    let bytes = bytes_of(index, size);
                    let payload = read(&self.reader, index as u64 * size, bytes).await?;
                    let part = self.parts.put_part(self.key, upload, index, payload).await?;
                    Ok::<_, object_store::Error>((index, part, bytes))
                }
            })
            .buffer_unordered(self.pace.parallel);
        while let Some((index, part, bytes)) = sent.try_next().await? {
            begun.taken.insert(index, part.content_id);
            self.record.write(&begun);
            progress.advance(bytes);
        }
        self.file.check_unchanged().map_err(|failure| {
            self.record.remove();
            changed(failure.message().to_owned())
        })?;
        let parts = begun.taken.into_values().map(|content_id| PartId { content_id }).collect();
        self.parts.complete_multipart(self.key, &upload, parts).await?;
        self.record.remove();
        Ok(had)
    }
}

/// Sends a file in parts of one process.
async fn stream(
    store: &Store,
    key: &Key,
    file: &Local,
    reader: &Arc<fs::File>,
    pace: Pace,
    progress: &dyn Progress,
) -> Result<()> {
    let failed = |error| explain(&error, &store.address);
    let options = PutMultipartOptions { attributes: attributes(file), ..Default::default() };
    let upload = store.objects.put_multipart_opts(key, options).await.map_err(failed)?;
    let part = usize::try_from(pace.part).map_err(Failure::new)?;
    let mut writer = WriteMultipart::new_with_chunk_size(upload, part);
    let mut at = 0;
    while at < file.bytes {
        let bytes = pace.part.min(file.bytes - at);
        writer.wait_for_capacity(pace.parallel).await.map_err(failed)?;
        for piece in read(reader, at, bytes).await.map_err(failed)? {
            writer.put(piece);
        }
        progress.advance(bytes);
        at += bytes;
    }
    file.check_unchanged()?;
    writer.finish().await.map_err(failed)?;
    Ok(())
}

/// Sends a small file at once.
pub async fn put(store: &Store, key: &Key, file: &Local) -> Result<()> {
    let bytes =
        fs::read(&file.path).map_err(|error| Failure::new(error).of(file.path.display()))?;
    file.check_unchanged()?;
    let options = object_store::PutOptions { attributes: attributes(file), ..Default::default() };
    let put = store.objects.put_opts(key, PutPayload::from(bytes), options).await;
    put.map_err(|error| explain(&error, &store.address))?;
    Ok(())
}

/// A copy that the store makes itself.
pub async fn copy(store: &Store, from: &Key, to: &Key) -> Result<()> {
    store.objects.copy(from, to).await.map_err(|error| explain(&error, &store.address))
}

/// `bytes` of the file from `start` on.
async fn read(file: &Arc<fs::File>, start: u64, bytes: u64) -> object_store::Result<PutPayload> {
    let file = file.clone();
    let read = move || {
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut buffer, start).map(|()| PutPayload::from(buffer))
    };
    let read = tokio::task::spawn_blocking(read).await;
    match read {
        Ok(Ok(payload)) => Ok(payload),
        Ok(Err(error)) => Err(changed(format!("became shorter while it was pushed: {error}"))),
        Err(error) => Err(changed(error.to_string())),
    }
}

fn changed(why: String) -> object_store::Error {
    object_store::Error::Generic { store: CHANGED, source: why.into() }
}
