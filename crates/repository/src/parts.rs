//! Parts of a built repository, opened alone, so that each can be measured. They run what the
//! stages run, opened as the stages open it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use imprompt_caption::{CaptionRequest, Captioner, GenerationOptions, Told};
use imprompt_engine::Floats;
use imprompt_error::{Error, Result, Uncancellable};
use imprompt_interrogate::{
    Config, Interrogator, LabelEmbeds, LabelTable, PromptEncoder, Scoring, SharedBytes, Table,
    Vocabulary, zero_shot,
};
use imprompt_picture::{CropRule, Filter, Limits, Preprocessor, RgbImage8, Scratch};
use imprompt_stage::text_side::{TextModel, TextSide};
use imprompt_stage::{
    Data, Parameters, Request, Stage, StageFile, StageKind, StageModel, Tensor, captioner, ranker,
    tables,
};

use crate::Manifest;
use crate::layout::{self, VERSION};
use crate::stage_file;

/// The folder of a stage, and what its stage.json says.
fn stage(repository: &Path, kind: StageKind) -> Result<(PathBuf, StageFile)> {
    let manifest = Manifest::read(repository)?;
    if !manifest.stages.iter().any(|stage| stage == kind.name()) {
        return Err(Error::not_found(format!(
            "{}: built without `{}`; it has {}",
            repository.display(),
            kind.name(),
            manifest.stages.join(", ")
        )));
    }
    let folder = repository.join(kind.name()).join(VERSION);
    let file = stage_file::read(&folder)?;
    Ok((folder, file))
}

/// The width of the embeddings of the repository's CLIP.
///
/// # Errors
/// [`imprompt_error::Kind::NotFound`] when it has none.
pub fn dimension(repository: &Path) -> Result<usize> {
    match stage(repository, StageKind::ClipText)? {
        (_, StageFile::ClipText(file)) => Ok(file.facts.projection_dim),
        (folder, _) => Err(stage_file::wrong(&folder)),
    }
}

/// CLIP's text side: texts to embeddings, and the step of a chain.
pub struct TextPart(TextSide);

impl TextPart {
    /// Opens the text encoder of `repository`, which reads texts as the interrogator does.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::NotFound`] when it has none; what opening it fails with.
    pub fn open(repository: &Path, parameters: &Parameters) -> Result<Self> {
        let (folder, file) = stage(repository, StageKind::ClipText)?;
        let StageFile::ClipText(file) = file else {
            return Err(stage_file::wrong(&folder));
        };
        let cleaning = imprompt_stage::text_side::Cleaning::OpenClip;
        let model = TextModel::open(&folder, file.facts, cleaning, parameters)
            .map_err(|error| error.context(layout::shown(&folder)))?;
        Ok(TextPart(model.side(parameters.placement)?))
    }

    /// Width D of the embeddings.
    pub fn dimension(&self) -> usize {
        self.0.dimension()
    }

    /// Tokens of a text, without the start and the end token.
    pub fn token_count(&self, text: &str) -> usize {
        self.0.token_count(text)
    }

    /// The embeddings of `texts`: float32 `[n, D]`, each row L2-normalised.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn encode(&mut self, texts: &[&str]) -> Result<Vec<f32>> {
        self.0.encode(texts, &Uncancellable)
    }

    /// A step of a chain: the cosines of `image` (float32 `[D]`) with `prompt, PHRASE` for each phrase.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn chain_step(
        &mut self,
        image: &[f32],
        prompt: &str,
        phrases: &[&str],
    ) -> Result<Vec<f32>> {
        self.0.continuation_similarities(image, prompt, phrases, &Uncancellable)
    }
}

/// The interrogator of `repository` and its text side, with the screen where it has one.
///
/// # Errors
/// [`imprompt_error::Kind::NotFound`] when it has none; what opening it fails with.
pub fn interrogator(
    repository: &Path,
    parameters: &Parameters,
) -> Result<(Interrogator, TextSide)> {
    let (folder, file) = stage(repository, StageKind::Ranker)?;
    let StageFile::Ranker(file) = file else {
        return Err(stage_file::wrong(&folder));
    };
    ranker::alone(&folder, file, parameters).map_err(|error| error.context(layout::shown(&folder)))
}

/// CLIP's image tower.
pub struct ImagePart {
    /// Declared before the model it was made by, so that it is dropped first.
    instance: Box<dyn Stage>,
    _model: Box<dyn StageModel>,
    size: usize,
}

impl ImagePart {
    /// Opens the image tower of `repository`.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::NotFound`] when it has none; what opening it fails with.
    pub fn open(repository: &Path, parameters: &Parameters) -> Result<Self> {
        let (folder, file) = stage(repository, StageKind::ClipImage)?;
        let StageFile::ClipImage(file) = file else {
            return Err(stage_file::wrong(&folder));
        };
        let model = imprompt_stage::open(&folder, parameters)
            .map_err(|error| error.context(layout::shown(&folder)))?;
        Ok(ImagePart {
            instance: model.instance(parameters.placement)?,
            _model: model,
            size: file.facts.image_size,
        })
    }

    /// Rows and columns of a picture.
    pub fn image_size(&self) -> usize {
        self.size
    }

    /// The embeddings of `pixel_values`, float32 `[batch, 3, size, size]`: float32 `[batch, D]`.
    ///
    /// # Errors
    /// What the stage refuses, and what the engine reports.
    pub fn encode(&mut self, batch: usize, pixel_values: &[f32]) -> Result<Vec<f32>> {
        let shape = vec![batch, 3, self.size, self.size];
        let inputs = vec![Tensor::f32("pixel_values", shape, pixel_values)];
        let request = Request { batch, inputs, outputs: None, cancellation: &Uncancellable };
        let lost = || Err(Error::internal("a stage left a request out"));
        let mut response = self.instance.execute(&[request]).pop().unwrap_or_else(lost)?;
        match response.pop().map(|tensor| tensor.data) {
            Some(Data::F32(values)) => Ok(values.into_owned()),
            _ => Err(Error::internal("no image_embeds")),
        }
    }
}

/// How long the parts of a caption took.
#[derive(Clone, Debug)]
pub struct CaptionTimes {
    /// Vision tower, and Q-Former where the model has one.
    pub encode: Duration,
    /// From the pixels to the first token, the encoders included.
    pub first_token: Duration,
    /// Each later token, of the whole batch at once.
    pub tokens: Vec<Duration>,
    /// All of it.
    pub total: Duration,
    /// The tokens of the first picture's caption.
    pub ids: Vec<u32>,
}

/// The captioner.
pub struct CaptionerPart(Captioner);

impl CaptionerPart {
    /// Opens the captioner of `repository`.
    ///
    /// # Errors
    /// [`imprompt_error::Kind::NotFound`] when it has none; what opening it fails with.
    pub fn open(repository: &Path, parameters: &Parameters) -> Result<Self> {
        let (folder, file) = stage(repository, StageKind::Captioner)?;
        let StageFile::Captioner(file) = file else {
            return Err(stage_file::wrong(&folder));
        };
        let captioner = captioner::alone(&folder, file, parameters)
            .map_err(|error| error.context(layout::shown(&folder)))?;
        Ok(CaptionerPart(captioner))
    }

    /// Rows and columns of a picture.
    pub fn image_size(&self) -> usize {
        self.0.facts().image_size
    }

    /// Captions of exactly `tokens` tokens for `pixel_values`, float32 `[batch, 3, size, size]`.
    ///
    /// # Errors
    /// What the captioner refuses, and what the engine reports.
    pub fn caption(
        &mut self,
        batch: usize,
        pixel_values: &[f32],
        tokens: usize,
    ) -> Result<CaptionTimes> {
        let started = Instant::now();
        // What BERT's tokenizer makes of an empty text, for a Q-Former that reads one.
        let empty: &[u32] = &[101, 102];
        drop(self.0.encode(batch, pixel_values, &vec![empty; batch])?);
        let encode = started.elapsed();
        let options = GenerationOptions {
            min_new_tokens: tokens,
            max_new_tokens: tokens,
            ..GenerationOptions::from(&self.0.facts().generation)
        };
        let requests: Vec<CaptionRequest<'_>> = pixel_values
            .chunks_exact(pixel_values.len() / batch.max(1))
            .map(|pixel_values| CaptionRequest {
                picture: Floats::from(pixel_values),
                prompt_ids: None,
                qformer_ids: Some(empty),
                options,
                cancel: &Uncancellable,
            })
            .collect();
        let started = Instant::now();
        let (mut told, mut ids) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        let outcomes = self.0.caption_streaming(&requests, &mut |member, what| {
            if let (0, Told::Token(id)) = (member, what) {
                told.push(started.elapsed());
                ids.push(id);
            }
        });
        let total = started.elapsed();
        outcomes.into_iter().collect::<Result<Vec<_>>>()?;
        let first_token = told.first().copied().unwrap_or_default();
        let tokens = told.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok(CaptionTimes { encode, first_token, tokens, total, ids })
    }
}

/// A label table, ranked against pictures.
pub struct RankPart {
    interrogator: Interrogator,
    table: Arc<LabelTable>,
}

impl RankPart {
    /// A table of `rows` random rows of `dimension` values.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn random(rows: usize, dimension: usize) -> Result<Self> {
        let count = rows.saturating_mul(dimension);
        let mut values = Vec::new();
        values.try_reserve_exact(count).map_err(|_| Error::out_of_memory("a label table"))?;
        // Signs and mantissas at random (xorshift), values of 1/32 to 1/16: no special numbers.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        values.extend((0..count).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f16::from_bits((state >> 32) as u16 & 0x83ff | 0x2800)
        }));
        Self::of(LabelTable::new("random", vec![String::new(); rows], dimension, values)?)
    }

    /// The table in `file`, in the format of clip-interrogator's cache, mapped into memory; `embeds` is
    /// `[rows, dimension]`, and its labels are the numbers of its rows from 0.
    ///
    /// # Errors
    /// When the file cannot be read or is not such a table.
    pub fn open(file: &Path, rows: usize, dimension: usize) -> Result<Self> {
        let bytes: SharedBytes = imprompt_mapping::map_file(file)?;
        let labels = (0..rows).map(|row| row.to_string()).collect();
        Self::of(LabelTable::from_safetensors("table", labels, dimension, bytes)?)
    }

    fn of(table: LabelTable) -> Result<Self> {
        let dimension = table.dimension();
        let table = Arc::new(table);
        let mut vocabulary = Vocabulary::new(dimension);
        for kind in Table::ALL {
            let empty = LabelTable::new(kind.name(), vec![], dimension, vec![])?;
            vocabulary.insert(kind, Arc::new(empty))?;
        }
        vocabulary.insert(Table::Flavors, table.clone())?;
        let interrogator = Interrogator::new(vocabulary, Config::default())?;
        Ok(RankPart { interrogator, table })
    }

    /// The best `count` rows, best first, as `zero_shot` with `top_k` finds them: with probabilities.
    ///
    /// # Errors
    /// When `image` has another width.
    pub fn best(&self, image: &[f32], count: usize) -> Result<Vec<usize>> {
        let scoring = Scoring::Softmax { scale: 100.0 };
        let rows = LabelEmbeds::Float16(self.table.rows());
        let scores = zero_shot(image, self.table.dimension(), rows, scoring, Some(count), 0)?;
        Ok(scores.into_iter().flatten().map(|score| score.index).collect())
    }

    /// The candidates of a chain, by the reference's rule of two stages.
    ///
    /// # Errors
    /// When `image` has another width.
    pub fn candidates(&self, image: &[f32]) -> Result<Vec<usize>> {
        self.interrogator.candidates(image)
    }
}

/// How long the parts of a picture's way to pixel values took.
#[derive(Clone, Copy, Debug)]
pub struct PictureTimes {
    /// Bytes to 8-bit RGB.
    pub decode: Duration,
    /// That to a picture whose shorter side is 224, bicubic.
    pub resize: Duration,
    /// Resize, crop and normalisation together, after decoding.
    pub pixel_values: Duration,
}

/// Decoding and preprocessing as OpenAI's CLIP has it.
pub struct PicturePart {
    preprocessor: Preprocessor,
    scratch: Scratch,
    values: Vec<f32>,
}

/// The shorter side of a picture that CLIP sees.
const SIDE: usize = 224;

impl PicturePart {
    /// Needs no repository.
    ///
    /// # Errors
    /// None that are known.
    pub fn new() -> Result<Self> {
        let config = format!(
            r#"{{"image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": {SIDE},
                "resample": 3, "do_center_crop": true, "crop_size": {SIDE}, "do_normalize": true,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711]}}"#
        );
        let preprocessor =
            Preprocessor::from_json(config.as_bytes())?.with_crop_rule(CropRule::Torchvision);
        let values = vec![0.0; preprocessor.output_len()];
        Ok(PicturePart { preprocessor, scratch: Scratch::default(), values })
    }

    /// Decodes and preprocesses one picture.
    ///
    /// # Errors
    /// What is wrong with the picture.
    pub fn run(&mut self, bytes: &[u8]) -> Result<PictureTimes> {
        let limits = Parameters::default();
        let limits = Limits {
            encoded_bytes: limits.max_image_bytes,
            side: limits.max_image_side as usize,
            pixels: limits.max_image_pixels as usize,
        };
        let started = Instant::now();
        let image = imprompt_picture::decode(bytes, &limits)?;
        let decode = started.elapsed();
        let (width, height) = shorter_side(&image);
        let started = Instant::now();
        drop(imprompt_picture::resize(&image, width, height, Filter::Bicubic)?);
        let resize = started.elapsed();
        let started = Instant::now();
        self.preprocessor.run(&image, &mut self.scratch, &mut self.values)?;
        Ok(PictureTimes { decode, resize, pixel_values: started.elapsed() })
    }

    /// The pixel values of the picture that was run last.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Width and height at which the shorter side is [`SIDE`], as torchvision counts.
fn shorter_side(image: &RgbImage8) -> (usize, usize) {
    let (width, height) = (image.width(), image.height());
    match width <= height {
        true => (SIDE, SIDE * height / width),
        false => (SIDE * width / height, SIDE),
    }
}

/// Labels of the repository's tables, from the largest: real phrases to measure with.
///
/// # Errors
/// When a table's file cannot be read.
pub fn phrases(repository: &Path) -> Result<Vec<String>> {
    let (folder, file) = stage(repository, StageKind::Tagger)?;
    let StageFile::Tagger(file) = file else { return Ok(Vec::new()) };
    let mut phrases: Vec<Vec<String>> = file
        .tables
        .iter()
        .map(|table| {
            tables::labels(&table.name, table.file.as_ref().map(|f| folder.join(f)).as_deref())
        })
        .collect::<Result<_>>()?;
    phrases.sort_by_key(|labels| std::cmp::Reverse(labels.len()));
    let mut phrases = phrases.concat();
    phrases.retain(|phrase| !phrase.is_empty());
    Ok(phrases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_table_is_ranked_both_ways() {
        let part = RankPart::random(5_000, 16).unwrap();
        let image: Vec<f32> = (0..16).map(|i| i as f32 / 100.0).collect();
        let best = part.best(&image, 3).unwrap();
        let candidates = part.candidates(&image).unwrap();
        assert_eq!(best, candidates[..3]);
        // Three chunks of 2048 keep 682 each.
        assert_eq!(candidates.len(), 3 * 682);
        assert!(part.candidates(&image[1..]).is_err());
    }

    #[test]
    fn a_picture_is_decoded_and_prepared() {
        let bytes =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/croissant.png"))
                .unwrap();
        let mut part = PicturePart::new().unwrap();
        part.run(&bytes).unwrap();
        assert!(part.values().iter().any(|value| *value > 1.0));
        assert!(part.run(&bytes[..9]).is_err());
        let wide = RgbImage8::new(2048, 1536, vec![0; 3 * 2048 * 1536]).unwrap();
        assert_eq!(shorter_side(&wide), (298, 224));
    }
}
