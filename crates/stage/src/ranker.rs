//! `ranker`: CLIP Interrogator. A picture's embedding and its caption to a prompt.

use std::path::Path;
use std::sync::Arc;

use imprompt_error::{Error, Result};
use imprompt_graph::ClipFacts;
use imprompt_interrogate::{Config, Interrogator, Outcome, Report, Seconds, Table, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::modes::mode;
use crate::on_gpu::GpuTables;
use crate::tables::{self, TableFile};
use crate::text_side::{Cleaning, TextModel, TextSide};
use crate::{
    Parameters, Placement, Request, Response, Signature, Stage, StageKind, StageModel, Tensor,
};

/// The stage file of `ranker`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankerFile {
    /// What the text graph of this folder is.
    pub facts: ClipFacts,
    /// How texts are cleaned before they are tokenised.
    pub cleaning: Cleaning,
    /// The label tables; the interrogator's have its names.
    #[serde(default)]
    pub tables: Vec<TableFile>,
    /// The graph of the text tower in 8 bits that sorts out candidates, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub screen: Option<String>,
}

struct Shared {
    text: TextModel,
    /// Those of the interrogator.
    tables: GpuTables,
    dimension: usize,
    interrogator: Interrogator,
    parameters: Parameters,
}

pub(crate) struct RankerModel {
    shared: Arc<Shared>,
    signature: Signature,
}

impl RankerModel {
    pub(crate) fn open(folder: &Path, file: RankerFile, parameters: &Parameters) -> Result<Self> {
        let dimension = file.facts.projection_dim;
        let mut signature = StageKind::Ranker.signature();
        signature.set_dims("image_embeds", &[dimension as i64]);
        let mut vocabulary = Vocabulary::new(dimension);
        for (name, table) in tables::open(folder, &file.tables, dimension)? {
            if let Some(kind) = Table::by_name(&name) {
                vocabulary.insert(kind, table)?;
            }
        }
        let all = Table::ALL.iter().filter_map(|table| vocabulary.get(*table).cloned());
        let tables = GpuTables::new(all.collect());
        let interrogator = Interrogator::new(
            vocabulary,
            Config { threads: parameters.threads, ..Config::default() },
        )?;
        let text = TextModel::open(folder, file.facts, file.cleaning, parameters)?
            .with_screen(file.screen.as_deref())?;
        let parameters = parameters.clone();
        let shared = Shared { text, tables, dimension, interrogator, parameters };
        Ok(RankerModel { shared: Arc::new(shared), signature })
    }
}

impl StageModel for RankerModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self, placement: Placement) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Ranker {
            text: self.shared.text.ranking_side(placement, &self.shared.tables)?,
            shared: self.shared.clone(),
        }))
    }
}

/// The interrogator and the text side of the stage in `folder`, opened as the stage opens them: to be
/// measured.
///
/// # Errors
/// As [`crate::open`].
pub fn alone(
    folder: &Path,
    file: RankerFile,
    parameters: &Parameters,
) -> Result<(Interrogator, TextSide)> {
    let shared = RankerModel::open(folder, file, parameters)?.shared;
    let text = shared.text.ranking_side(parameters.placement, &shared.tables)?;
    Ok((shared.interrogator.clone(), text))
}

/// The output `report`.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    report: &'a Report,
    seconds: &'a Seconds,
}

struct Ranker {
    shared: Arc<Shared>,
    text: TextSide,
}

impl Stage for Ranker {
    fn execute(&mut self, requests: &[Request<'_>]) -> Vec<Result<Response>> {
        requests.iter().map(|request| self.answer(request)).collect()
    }
}

impl Ranker {
    fn answer(&mut self, request: &Request<'_>) -> Result<Response> {
        let shared = &*self.shared;
        let image_embeds = request.f32("image_embeds", shared.dimension)?;
        let most = shared.parameters.max_text_bytes;
        let captions = request
            .optional_texts("caption", most)?
            .ok_or_else(|| Error::invalid("input `caption`: missing"))?;
        let modes = request.optional_texts("mode", most)?;
        let min_flavors = request.optional_i32("min_flavors")?;
        let max_flavors = request.optional_i32("max_flavors")?;
        let budget_ms = request.optional_i32("budget_ms")?;
        let deadline = Deadline::new(request.cancellation, shared.parameters.deadline_ms);

        let mut outcomes: Vec<Outcome> = Vec::with_capacity(request.batch);
        for (item, image) in image_embeds.chunks_exact(shared.dimension).enumerate() {
            let asked = imprompt_interrogate::Request {
                mode: mode(modes.as_deref(), item)?,
                caption: captions[item],
                min_flavors: min_flavors.map(|values| values[item]),
                max_flavors: max_flavors.map(|values| values[item]),
                budget_ms: budget_ms.as_ref().map(|values| values[item]),
            };
            let outcome =
                shared.interrogator.interrogate(image, &asked, &mut self.text, &deadline)?;
            outcomes.push(outcome);
        }

        let similarities: Vec<f32> = outcomes.iter().map(|outcome| outcome.similarity).collect();
        let reports: Vec<String> = outcomes
            .iter()
            .map(|Outcome { report, seconds, .. }| serde_json::to_string(&Told { report, seconds }))
            .collect::<Result<_, _>>()
            .map_err(|error| Error::internal(format!("report: {error}")))?;
        let prompts = outcomes.into_iter().map(|outcome| outcome.prompt).collect();
        let mut response = vec![
            Tensor::texts("prompt", prompts),
            Tensor::texts("caption", captions.into_iter().map(str::to_owned).collect()),
            Tensor::f32("similarity", vec![request.batch, 1], similarities),
            Tensor::texts("report", reports),
        ];
        response.retain(|tensor| request.wants(&tensor.name));
        Ok(response)
    }
}
