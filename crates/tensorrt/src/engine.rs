//! One graph as an engine of TensorRT.

use std::ops::Range;
use std::sync::Arc;

use imprompt_cuda::{Feed, Part, Span, Stream};
use imprompt_engine::{
    Cache, CacheSpec, ElementType, Engine, Held, Input, Port, brought, manifest::InputRange,
};
use imprompt_error::{Error, Result};

use crate::cache::TensorRtCache;
use crate::context::{Context, bytes};
use crate::held::TensorRtHeld;
use crate::pool::{Lease, Pool};
use crate::profile::{LENGTH_STEP, choose};

/// What the runs of an engine are: read from its manifest, and checked against the engine.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) profiles: Vec<Vec<InputRange>>,
}

/// An engine with a context for each of its profiles: to switch one costs what it has computed
/// beforehand.
#[derive(Debug)]
pub(crate) struct TensorRtEngine {
    /// Dropped before the memory that they know of.
    contexts: Vec<Context>,
    facts: Facts,
    feed: Feed,
    pool: Arc<Pool>,
    stream: Stream,
    records: bool,
    name: String,
}

/// Where an input comes from.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// It is on the device, written by work of the run's stream.
    There(Span<'a>),
    /// It is brought with the others, as the one of this number.
    Brought(usize),
}

/// An input of a run.
struct Given<'a> {
    source: Source<'a>,
    element_type: ElementType,
    shape: Vec<usize>,
}

/// Where an output goes.
enum Target<'a> {
    Cache(Span<'a>),
    Own(Lease),
}

impl TensorRtEngine {
    /// The engine of the graph `name` with `contexts`, one for each profile.
    pub(crate) fn new(
        name: String,
        facts: Facts,
        contexts: Vec<Context>,
        stream: &Stream,
        records: bool,
    ) -> Result<Self> {
        Ok(TensorRtEngine {
            contexts,
            facts,
            feed: Feed::new(stream)?,
            pool: Pool::new(stream),
            stream: stream.clone(),
            records,
            name,
        })
    }

    fn run_bound(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: Option<(&TensorRtCache, &Range<usize>)>,
    ) -> Result<Vec<Box<dyn Held>>> {
        self.stream.bind()?;
        let Facts { inputs: input_ports, outputs: output_ports, profiles } = &self.facts;
        let mut parts: Vec<Part<'_>> = Vec::with_capacity(inputs.len());
        let mut given: Vec<Option<Given<'_>>> = input_ports.iter().map(|_| None).collect();
        for (name, input) in inputs {
            let place = find(input_ports, name, "input")?;
            put(&mut given, place, name, self.given(input, &mut parts)?)?;
        }
        let mut cached: Vec<Option<Span<'_>>> = output_ports.iter().map(|_| None).collect();
        if let Some((cache, slots)) = cache {
            let element_type = cache.spec().element_type;
            for (entry, span, shape) in cache.spans(slots)? {
                // A graph has both, one of them, or neither.
                if let Ok(place) = find(input_ports, &entry.input, "input") {
                    let shape = shape.to_vec();
                    let input = Given { source: Source::There(span), element_type, shape };
                    put(&mut given, place, &entry.input, input)?;
                }
                if let Ok(place) = find(output_ports, &entry.output, "output") {
                    check_type(&output_ports[place], element_type)?;
                    cached[place] = Some(span);
                }
            }
        }
        let given = all(given, input_ports)?;
        let shapes: Vec<Vec<usize>> = given.iter().map(|input| input.shape.clone()).collect();
        let profile = choose(profiles, input_ports, &shapes)?;
        let context = self
            .contexts
            .get_mut(profile)
            .ok_or_else(|| Error::internal(format!("no context has profile {profile}")))?;
        let made = context.shape(&shapes)?;
        // All outputs are written, those that nobody asks for as well.
        let mut targets = Vec::with_capacity(made.len());
        for ((port, shape), cached) in output_ports.iter().zip(&made).zip(cached) {
            targets.push(match cached {
                Some(span) => Target::Cache(span),
                None => {
                    let bytes = bytes(shape, port.element_type).ok_or_else(|| {
                        Error::internal(format!("output {} of shape {shape:?}", port.name))
                    })?;
                    Target::Own(self.pool.take(bytes)?)
                }
            });
        }
        // Without any there is nothing to bring.
        let fed = if parts.is_empty() { Vec::new() } else { self.feed.spans(&parts)? };
        let sources: Vec<Span<'_>> = given
            .iter()
            .map(|input| match input.source {
                Source::There(span) => span,
                Source::Brought(number) => fed[number],
            })
            .collect();
        let places: Vec<Span<'_>> = targets
            .iter()
            .map(|target| match target {
                Target::Cache(span) => Ok(*span),
                Target::Own(lease) => lease.span(),
            })
            .collect::<Result<_>>()?;
        context.enqueue(&sources, &places)?;
        drop(places);
        asked(outputs, output_ports, made, targets)
    }

    /// `input`, as a run has it: what is not of this stream is brought.
    fn given<'a>(&self, input: &Input<'a>, parts: &mut Vec<Part<'a>>) -> Result<Given<'a>> {
        let own = match input {
            Input::Held(held) => held.as_any().downcast_ref::<TensorRtHeld>(),
            Input::View(_) => None,
        };
        let source = match own.map(|held| held.span(&self.stream)).transpose()?.flatten() {
            Some(span) => Source::There(span),
            None => {
                parts.push(brought(input, self.stream.device())?);
                Source::Brought(parts.len() - 1)
            }
        };
        let (element_type, shape) = (input.element_type(), input.shape().to_vec());
        Ok(Given { source, element_type, shape })
    }

    /// `cache` as this runtime's.
    fn own<'c>(&self, cache: &'c dyn Cache) -> Result<&'c TensorRtCache> {
        let cache = cache.as_any().downcast_ref::<TensorRtCache>();
        let is_own = |cache: &&TensorRtCache| {
            cache.stream().is_none_or(|stream| stream.handle() == self.stream.handle())
        };
        cache.filter(is_own).ok_or_else(|| Error::internal("the cache is another runtime's"))
    }
}

/// The place of the port `name`.
fn find(ports: &[Port], name: &str, what: &str) -> Result<usize> {
    ports
        .iter()
        .position(|port| port.name == name)
        .ok_or_else(|| Error::internal(format!("the graph has no {what} {name}")))
}

fn put<'a>(
    given: &mut [Option<Given<'a>>],
    place: usize,
    name: &str,
    input: Given<'a>,
) -> Result<()> {
    match given[place].replace(input) {
        None => Ok(()),
        Some(_) => Err(Error::internal(format!("input {name} was given twice"))),
    }
}

/// The inputs, where all were given with elements of the right type.
fn all<'a>(given: Vec<Option<Given<'a>>>, ports: &[Port]) -> Result<Vec<Given<'a>>> {
    given
        .into_iter()
        .zip(ports)
        .map(|(input, port)| {
            let missing = || Error::internal(format!("input {} was not given", port.name));
            let input = input.ok_or_else(missing)?;
            check_type(port, input.element_type)?;
            Ok(input)
        })
        .collect()
}

fn check_type(port: &Port, given: ElementType) -> Result<()> {
    if port.element_type == given {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{} has elements of type {:?}, {given:?} was given",
        port.name, port.element_type
    )))
}

/// The outputs `names` of a run; the memory of the others goes back.
fn asked(
    names: &[&str],
    ports: &[Port],
    shapes: Vec<Vec<usize>>,
    targets: Vec<Target<'_>>,
) -> Result<Vec<Box<dyn Held>>> {
    let mut made: Vec<Option<(Target<'_>, Vec<usize>)>> =
        targets.into_iter().zip(shapes).map(Some).collect();
    names
        .iter()
        .map(|name| -> Result<Box<dyn Held>> {
            let place = find(ports, name, "output")?;
            match made[place].take() {
                Some((Target::Own(lease), shape)) => {
                    Ok(Box::new(TensorRtHeld::new(lease, ports[place].element_type, shape)))
                }
                Some((Target::Cache(_), _)) => {
                    Err(Error::internal(format!("output {name} is the cache's")))
                }
                None => Err(Error::internal(format!("output {name} was asked for twice"))),
            }
        })
        .collect()
}

impl Engine for TensorRtEngine {
    fn inputs(&self) -> &[Port] {
        &self.facts.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.facts.outputs
    }

    fn most(&self, name: &str, axis: usize) -> Option<usize> {
        let ranges = self.facts.profiles.iter().flatten().filter(|range| range.input == name);
        ranges.filter_map(|range| range.most.get(axis).copied()).max()
    }

    fn length_step(&self) -> usize {
        if self.records { LENGTH_STEP } else { 1 }
    }

    fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
    ) -> Result<Vec<Box<dyn Held>>> {
        self.run_bound(inputs, outputs, None).map_err(|error| error.context(&self.name))
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<Box<dyn Cache>> {
        Ok(Box::new(TensorRtCache::new(spec, &self.stream)?))
    }

    fn run_with_cache(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cache: &mut dyn Cache,
        slots: Range<usize>,
    ) -> Result<Vec<Box<dyn Held>>> {
        let cache = self.own(cache)?;
        self.run_bound(inputs, outputs, Some((cache, &slots)))
            .map_err(|error| error.context(&self.name))
    }
}

impl Drop for TensorRtEngine {
    fn drop(&mut self) {
        // The contexts' memory is freed with them: nothing may still work on it.
        if let Err(error) = self.stream.synchronize() {
            tracing::error!("work on the GPU failed while {} was closed: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Kind;

    fn port(name: &str, element_type: ElementType) -> Port {
        Port { name: name.to_owned(), element_type, shape: vec![None] }
    }

    fn given<'a>(element_type: ElementType) -> Given<'a> {
        Given { source: Source::Brought(0), element_type, shape: vec![1] }
    }

    #[test]
    fn inputs_are_all_given_once_and_of_the_right_type() {
        let ports = [port("ids", ElementType::I64), port("keys", ElementType::F16)];
        assert_eq!(find(&ports, "keys", "input").unwrap(), 1);
        let error = find(&ports, "values", "input").unwrap_err();
        assert_eq!(error.message(), "the graph has no input values");
        assert_eq!(error.kind(), Kind::Internal);

        let mut inputs = vec![None, None];
        put(&mut inputs, 0, "ids", given(ElementType::I64)).unwrap();
        let twice = put(&mut inputs, 0, "ids", given(ElementType::I64)).unwrap_err();
        assert_eq!(twice.message(), "input ids was given twice");
        let missing = all(inputs, &ports).err().unwrap();
        assert_eq!(missing.message(), "input keys was not given");
        let wrong = vec![Some(given(ElementType::I64)), Some(given(ElementType::F32))];
        let error = all(wrong, &ports).err().unwrap();
        assert_eq!(error.message(), "keys has elements of type F16, F32 was given");
        let right = vec![Some(given(ElementType::I64)), Some(given(ElementType::F16))];
        assert_eq!(all(right, &ports).unwrap().len(), 2);
    }
}
