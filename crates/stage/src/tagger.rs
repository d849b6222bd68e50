//! `tagger`: a picture's embedding against the labels of a request, or against a
//! stored label table.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Result, Uncancellable};
use imprompt_graph::{ClipFacts, Probability};
use imprompt_interrogate::{
    LabelEmbeds, LabelTable, PromptEncoder, Score, Scoring, TableRanker, zero_shot, zero_shot_by,
};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::on_gpu::GpuTables;
use crate::tables::{self, TableFile};
use crate::text_side::{Cleaning, TextModel, TextSide};
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `tagger`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaggerFile {
    /// What the text graph of this folder is.
    pub facts: ClipFacts,
    /// How labels are cleaned before they are tokenised.
    pub cleaning: Cleaning,
    /// The stored label tables.
    #[serde(default)]
    pub tables: Vec<TableFile>,
}

struct Shared {
    text: TextModel,
    dimension: usize,
    scoring: Scoring,
    tables: Vec<(String, Arc<LabelTable>)>,
    gpu_tables: GpuTables,
    /// Embeddings of labels seen before, by the text that was embedded.
    seen: Cache<String, Arc<[f32]>>,
    parameters: Parameters,
}

pub(crate) struct TaggerModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl TaggerModel {
    pub(crate) fn open(folder: &Path, file: TaggerFile, parameters: &Parameters) -> Result<Self> {
        let dimension = file.facts.projection_dim;
        let scale = file.facts.logit_scale;
        let scoring = match file.facts.probability {
            Probability::Softmax => Scoring::Softmax { scale },
            Probability::Sigmoid { bias } => Scoring::Sigmoid { scale, bias },
        };
        let mut signature = StageKind::Tagger.signature();
        signature.set_dims("image_embeds", &[dimension as i64]);
        let tables = tables::open(folder, &file.tables, dimension)?;
        let text = TextModel::open(folder, file.facts, file.cleaning, parameters)?;
        let seen = Cache::new(parameters.label_cache_size);
        let parameters = parameters.clone();
        let gpu_tables = GpuTables::new(tables.iter().map(|(_, table)| table.clone()).collect());
        let shared = Shared { text, dimension, scoring, tables, gpu_tables, seen, parameters };
        Ok(TaggerModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for TaggerModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Tagger {
            text: self.shared.text.ranking_side(placement, &self.shared.gpu_tables)?,
            shared: self.shared.clone(),
        }))
    }
}

struct Tagger {
    shared: Arc<Shared>,
    text: TextSide,
}

/// The labels one item of a request is scored against.
enum Labels<'a> {
    /// The labels as given, and the texts to embed.
    Given(Vec<&'a str>, Vec<String>),
    Stored(Arc<LabelTable>),
}

/// What one request asks, checked.
struct Asked<'a> {
    image_embeds: &'a [f32],
    items: Vec<Labels<'a>>,
    top_k: Option<usize>,
}

type Embeds = HashMap<String, Arc<[f32]>>;

/// Scores against stored tables, by the places of the request and of the item in it.
type StoredScores = HashMap<(usize, usize), Result<Vec<Score>>>;

/// An item whose labels are stored.
struct StoredItem<'a> {
    table: &'a LabelTable,
    top_k: Option<usize>,
    place: (usize, usize),
    image: &'a [f32],
}

impl Stage for Tagger {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        let asked: Vec<Result<Asked<'_>>> =
            requests.iter().map(|request| self.shared.read(request)).collect();
        // All new labels of the batch go through the text tower together, and a stored table is
        // read once for the pictures of all requests.
        let embeds = self.embed(asked.iter().flatten());
        let mut stored = self.shared.score_stored(&asked, self.text.table_ranker());
        asked
            .into_iter()
            .zip(requests)
            .enumerate()
            .map(|(number, (asked, request))| {
                let asked = asked?;
                request.cancellation.check()?;
                let embeds = embeds.as_ref().map_err(Error::clone)?;
                self.shared.answer(&asked, (number, &mut stored), embeds, request)
            })
            .collect()
    }
}

impl Tagger {
    /// The embeddings of every given label, those seen before from the cache.
    fn embed<'a>(&mut self, asked: impl Iterator<Item = &'a Asked<'a>>) -> Result<Embeds> {
        let mut embeds = Embeds::new();
        let mut new: Vec<&str> = Vec::new();
        for labels in asked.flat_map(|asked| &asked.items) {
            let Labels::Given(_, texts) = labels else { continue };
            for text in texts {
                if embeds.contains_key(text) {
                    continue;
                }
                let row = self.shared.seen.get(text).unwrap_or_else(|| {
                    new.push(text);
                    Arc::from([])
                });
                embeds.insert(text.clone(), row);
            }
        }
        if !new.is_empty() {
            let rows = self.text.encode(&new, &Uncancellable)?;
            for (text, row) in new.iter().zip(rows.chunks_exact(self.shared.dimension)) {
                let row: Arc<[f32]> = row.into();
                self.shared.seen.insert((*text).to_owned(), row.clone());
                embeds.insert((*text).to_owned(), row);
            }
        }
        Ok(embeds)
    }
}

impl Shared {
    fn read<'a>(&self, request: &'a Request<'_>) -> Result<Asked<'a>> {
        let image_embeds = request.f32("image_embeds", self.dimension)?;
        let most = self.parameters.max_text_bytes;
        let labels = request.optional_text_lists("labels", self.parameters.max_labels, most)?;
        let names = request.optional_texts("vocabulary", most)?;
        let templates = request.optional_texts("template", most)?;
        let template = |item: usize| templates.as_ref().map(|templates| templates[item]);
        let items: Vec<Labels<'_>> = match (labels, names) {
            (Some((count, texts)), None) => texts
                .chunks_exact(count)
                .enumerate()
                .map(|(item, labels)| self.given(labels.to_vec(), template(item)))
                .collect::<Result<_>>()?,
            (None, Some(names)) => names
                .iter()
                .enumerate()
                .map(|(item, name)| self.stored(name, template(item)))
                .collect::<Result<_>>()?,
            (Some(_), Some(_)) => {
                return Err(Error::invalid("inputs `labels` and `vocabulary`: give only one"));
            }
            (None, None) => {
                return Err(Error::invalid("inputs `labels` and `vocabulary`: one is needed"));
            }
        };
        let count = items.first().map_or(0, Labels::count);
        if items.iter().any(|labels| labels.count() != count) {
            return Err(Error::invalid(
                "input `vocabulary`: tables of different sizes in one request; send them apart",
            ));
        }
        let top_k = self.top_k(request, count)?;
        Ok(Asked { image_embeds, items, top_k })
    }

    fn given<'a>(&self, labels: Vec<&'a str>, template: Option<&str>) -> Result<Labels<'a>> {
        let texts = match template {
            None => labels.iter().map(|label| (*label).to_owned()).collect(),
            Some(template) => {
                let (before, after) = split_template(template)?;
                labels.iter().map(|label| format!("{before}{label}{after}")).collect()
            }
        };
        Ok(Labels::Given(labels, texts))
    }

    fn stored(&self, name: &str, template: Option<&str>) -> Result<Labels<'static>> {
        if template.is_some() {
            return Err(Error::invalid(
                "input `template`: a vocabulary's embeddings are stored, a template is for `labels`",
            ));
        }
        let found = self.tables.iter().find(|(table, _)| table == name);
        let (_, table) = found.ok_or_else(|| {
            let names: Vec<&str> = self.tables.iter().map(|(name, _)| name.as_str()).collect();
            Error::invalid(match names.as_slice() {
                [] => "input `vocabulary`: this repository has no label tables".to_owned(),
                names => format!(
                    "input `vocabulary`: no such label table, allowed: {}",
                    names.join(", ")
                ),
            })
        })?;
        Ok(Labels::Stored(table.clone()))
    }

    fn top_k(&self, request: &Request<'_>, count: usize) -> Result<Option<usize>> {
        let Some(values) = request.optional_i32("top_k")? else { return Ok(None) };
        let first = values.first().copied().unwrap_or(0);
        if values.iter().any(|value| *value != first) {
            return Err(Error::invalid(
                "input `top_k`: different values in one request; send them apart",
            ));
        }
        match usize::try_from(first) {
            Ok(top_k) if (1..=count).contains(&top_k) => Ok(Some(top_k)),
            _ => Err(Error::invalid(format!("input `top_k`: {first}, allowed: 1 to {count}"))),
        }
    }

    /// The scores of every item whose labels are stored, by `ranker` if there is one: items of one
    /// table go together.
    fn score_stored(
        &self,
        asked: &[Result<Asked<'_>>],
        mut ranker: Option<&mut dyn TableRanker>,
    ) -> StoredScores {
        let mut items = Vec::new();
        for (number, asked) in asked.iter().enumerate() {
            let Ok(asked) = asked else { continue };
            let images = asked.image_embeds.chunks_exact(self.dimension);
            for (item, (image, labels)) in images.zip(&asked.items).enumerate() {
                if let Labels::Stored(table) = labels {
                    let (top_k, place) = (asked.top_k, (number, item));
                    items.push(StoredItem { table, top_k, place, image });
                }
            }
        }
        let kind = |item: &StoredItem<'_>| (std::ptr::from_ref(item.table).addr(), item.top_k);
        items.sort_by_key(kind);
        let mut scores = StoredScores::new();
        for group in items.chunk_by(|left, right| kind(left) == kind(right)) {
            let StoredItem { table, top_k, .. } = group[0];
            let mut score = |images: &[f32]| {
                if let Some(ranker) = &mut ranker {
                    return zero_shot_by(&mut **ranker, table, images, self.scoring, top_k);
                }
                let rows = LabelEmbeds::Float16(table.rows());
                let threads = self.parameters.threads;
                zero_shot(images, self.dimension, rows, self.scoring, top_k, threads)
            };
            let images: Vec<&[f32]> = group.iter().map(|item| item.image).collect();
            match score(&images.concat()) {
                Ok(all) => {
                    scores.extend(group.iter().zip(all).map(|(item, one)| (item.place, Ok(one))));
                }
                // An item that is wrong does not spoil the others.
                Err(_) => scores.extend(
                    group
                        .iter()
                        .map(|item| (item.place, score(item.image).map(|all| all.concat()))),
                ),
            }
        }
        scores
    }

    fn answer(
        &self,
        asked: &Asked<'_>,
        (number, stored): (usize, &mut StoredScores),
        embeds: &Embeds,
        request: &Request<'_>,
    ) -> Result<Response> {
        let mut names: Vec<Cow<'static, [u8]>> = Vec::new();
        let (mut probabilities, mut similarities) = (Vec::new(), Vec::new());
        let images = asked.image_embeds.chunks_exact(self.dimension);
        for (item, (image, labels)) in images.zip(&asked.items).enumerate() {
            let scores = match labels {
                Labels::Stored(_) => stored
                    .remove(&(number, item))
                    .unwrap_or_else(|| Err(Error::internal("a lost item")))?,
                Labels::Given(_, texts) => self.score_given(image, texts, embeds, asked.top_k)?,
            };
            for Score { index, probability, similarity } in scores {
                let name = match labels {
                    Labels::Given(labels, _) => labels[index],
                    Labels::Stored(table) => &table.labels()[index],
                };
                names.push(Cow::Owned(name.as_bytes().to_vec()));
                probabilities.push(probability);
                similarities.push(similarity);
            }
        }
        let shape = vec![request.batch, names.len() / request.batch];
        let mut response = vec![
            Tensor::bytes("label", shape.clone(), names),
            Tensor::f32("probability", shape.clone(), probabilities),
            Tensor::f32("similarity", shape, similarities),
        ];
        response.retain(|tensor| request.wants(&tensor.name));
        Ok(response)
    }

    fn score_given(
        &self,
        image: &[f32],
        texts: &[String],
        embeds: &Embeds,
        top_k: Option<usize>,
    ) -> Result<Vec<Score>> {
        let mut rows = Vec::with_capacity(texts.len() * self.dimension);
        for text in texts {
            let row = embeds.get(text).ok_or_else(|| Error::internal("a lost label"))?;
            rows.extend_from_slice(row);
        }
        let rows = LabelEmbeds::Float32(&rows);
        let scores = zero_shot(image, self.dimension, rows, self.scoring, top_k, 1)?;
        Ok(scores.into_iter().flatten().collect())
    }
}

impl Labels<'_> {
    fn count(&self) -> usize {
        match self {
            Labels::Given(labels, _) => labels.len(),
            Labels::Stored(table) => table.len(),
        }
    }
}

/// What stands before and after the one `{}` of a template.
fn split_template(template: &str) -> Result<(&str, &str)> {
    let places = template.matches("{}").count();
    match template.split_once("{}") {
        Some(parts) if places == 1 => Ok(parts),
        _ => Err(Error::invalid(format!(
            "input `template`: {places} places for the label (`{{}}`), exactly 1 is needed"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_place() {
        assert_eq!(split_template("a photo of a {}.").unwrap(), ("a photo of a ", "."));
        assert_eq!(split_template("{}").unwrap(), ("", ""));
        for wrong in ["", "a photo", "{} and {}"] {
            assert!(split_template(wrong).is_err());
        }
    }
}
