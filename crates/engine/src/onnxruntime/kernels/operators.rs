//! The operators: `Linear`, `Attention`, `PrefixAttention` and `CachedAttention`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imprompt_kernel::{
    Activation, Attention, CachedAttention, Finish, Instructions, Linear, Parallel,
    PrefixAttention, Queries,
};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::DOMAIN;
use super::weights::StoredWeight;
use crate::EngineOptions;

/// The operators over `weights`, run as `options` say with `instructions`.
///
/// # Errors
/// What the library reports.
pub(in super::super) fn domain(
    weights: Vec<StoredWeight>,
    options: &EngineOptions,
    instructions: Instructions,
) -> ort::Result<OperatorDomain> {
    let independent_rows = options.independent_rows;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    OperatorDomain::new(DOMAIN)?
        .add(LinearOperator { weights: weights.into(), threads, instructions, independent_rows })?
        .add(AttentionOperator { threads, instructions })?
        .add(PrefixOperator { threads, instructions })?
        .add(CacheOperator { threads })
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
];

/// The attribute `activation`: 0 for none.
pub(super) fn activation_number(activation: Option<Activation>) -> i64 {
    let place = |a: Activation| ACTIVATIONS.iter().position(|known| *known == a);
    activation.and_then(place).map_or(0, |place| place as i64 + 1)
}

/// The threads of the session that runs the operator.
struct Pool<'c> {
    context: &'c ComputeContext,
    threads: usize,
}

impl Parallel for Pool<'_> {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        if parts <= 1 || self.threads <= 1 {
            (0..parts).for_each(work);
            return;
        }
        // The library calls from C: no panic may unwind into it.
        let failed = AtomicBool::new(false);
        let guarded = |part: usize| {
            if catch_unwind(AssertUnwindSafe(|| work(part))).is_err() {
                failed.store(true, Ordering::Relaxed);
            }
        };
        let ran = self.context.par_for(parts, parts, guarded);
        assert!(ran.is_ok() && !failed.load(Ordering::Relaxed), "a part of the work failed");
    }
}

/// Runs `work` so that a panic is an error of the run.
fn guarded(work: impl FnOnce() -> ort::Result<()>) -> ort::Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(ort::Error::new("a kernel failed")))
}

fn floats<'v>(value: &'v ValueRef<'_>) -> ort::Result<(&'v [i64], &'v [f32])> {
    value.try_extract_tensor::<f32>().map(|(shape, data)| (&shape[..], data))
}

fn missing(name: &str) -> ort::Error {
    ort::Error::new(format!("an operator has no {name}"))
}

fn attribute(context: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let value: i64 = context.get(name).ok_or_else(|| missing(name))?;
    usize::try_from(value).map_err(|_| missing(name))
}

const F32: TensorElementType = TensorElementType::Float32;

/// `Linear(rows [.., inputs], bias? [outputs], residual? [.., outputs]) -> [.., outputs]`, of the
/// attributes `weight` (which of the session's) and `activation`.
struct LinearOperator {
    weights: Arc<[StoredWeight]>,
    threads: usize,
    instructions: Instructions,
    independent_rows: bool,
}

struct LinearKernel {
    weights: Arc<[StoredWeight]>,
    weight: usize,
    activation: Option<Activation>,
    threads: usize,
    instructions: Instructions,
    independent_rows: bool,
}

impl Operator for LinearOperator {
    type Kernel<'attr> = LinearKernel;

    fn name(&self) -> &str {
        "Linear"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(F32), OperatorInput::optional(F32), OperatorInput::optional(F32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let weight = attribute(context, "weight")?;
        if weight >= self.weights.len() {
            return Err(missing("weight"));
        }
        let activation = attribute(context, "activation")?;
        Ok(LinearKernel {
            weights: Arc::clone(&self.weights),
            weight,
            activation: activation.checked_sub(1).and_then(|a| ACTIVATIONS.get(a).copied()),
            threads: self.threads,
            instructions: self.instructions,
            independent_rows: self.independent_rows,
        })
    }
}

impl Kernel for LinearKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(|| {
            let weight = self.weights[self.weight].view();
            let rows = context.input(0)?.ok_or_else(|| missing("rows"))?;
            let (bias, residual) = (context.input(1)?, context.input(2)?);
            let (shape, rows) = floats(&rows)?;
            let bias = bias.as_ref().map(floats).transpose()?.map(|(_, data)| data);
            let residual = residual.as_ref().map(floats).transpose()?;
            let mut shape = shape.to_vec();
            if shape.pop() != Some(weight.inputs as i64) {
                return Err(ort::Error::new(format!("rows are not [.., {}]", weight.inputs)));
            }
            shape.push(weight.outputs as i64);
            let count = rows.len() / weight.inputs.max(1) * weight.outputs;
            if residual.is_some_and(|(_, data)| data.len() != count) {
                return Err(ort::Error::new("the residual has another shape than the results"));
            }
            let mut out = context.output(0, shape)?.ok_or_else(|| missing("output"))?;
            let (_, out) = out.try_extract_tensor_mut::<f32>()?;
            let finish = Finish {
                bias,
                activation: self.activation,
                residual: residual.map(|(_, data)| data),
            };
            let pool = Pool { context, threads: self.threads };
            let Self { instructions, independent_rows, .. } = *self;
            Linear { weight, finish, instructions, independent_rows }.run(rows, out, &pool);
            Ok(())
        })
    }
}

/// The operator's name, in graphs too.
pub(super) const ATTENTION: &str = "Attention";

/// `Attention(query, key, value)`, of the attribute `heads`, over `[batch, length, width]`; of
/// `[batch * length, width]` the attributes `queries` and `keys` are the lengths. As `crates/graph` writes it for
/// encoders.
struct AttentionOperator {
    threads: usize,
    instructions: Instructions,
}

struct AttentionKernel {
    heads: usize,
    /// Of queries and of keys, where shapes do not say them.
    lengths: [Option<usize>; 2],
    threads: usize,
    instructions: Instructions,
}

impl Operator for AttentionOperator {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &str {
        ATTENTION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [(); 3].map(|()| OperatorInput::required(F32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(AttentionKernel {
            heads: attribute(context, "heads")?,
            lengths: ["queries", "keys"].map(|name| attribute(context, name).ok()),
            threads: self.threads,
            instructions: self.instructions,
        })
    }
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(|| {
            let given = |index| context.input(index)?.ok_or_else(|| missing("input"));
            let (query, key, value) = (given(0)?, given(1)?, given(2)?);
            let (query_shape, query) = floats(&query)?;
            let (key_shape, keys) = floats(&key)?;
            let (_, values) = floats(&value)?;
            let width = query_shape.last().map_or(0, |width| *width as usize);
            let length = |shape: &[i64], given: Option<usize>| match shape {
                [_, length, _] => Ok(*length as usize),
                _ => given.ok_or_else(|| missing("length")),
            };
            let queries_each = length(query_shape, self.lengths[0])?;
            let keys_each = length(key_shape, self.lengths[1])?;
            let entry = keys_each * width;
            if width == 0 || entry == 0 || keys.len() % entry != 0 || keys.len() != values.len() {
                return Err(ort::Error::new(format!("keys are not [.., {keys_each}, {width}]")));
            }
            let batch = keys.len() / entry;
            let all = batch * queries_each * width;
            if query.len() != all && query.len() != queries_each * width {
                return Err(ort::Error::new(format!(
                    "queries are not [.., {queries_each}, {width}]"
                )));
            }
            let attention = Attention {
                heads: self.heads,
                head_dim: width / self.heads,
                keys,
                values,
                keys_each,
                queries_each,
                instructions: self.instructions,
            };
            let mut shape = query_shape.to_vec();
            // One entry's queries serve all: of rows, or of entries.
            shape[0] = (all / width) as i64;
            if let [entries, length, _] = &mut shape[..] {
                *entries /= *length;
            }
            let mut out = context.output(0, shape)?.ok_or_else(|| missing("output"))?;
            let (_, out) = out.try_extract_tensor_mut::<f32>()?;
            attention.run(query, out, &Pool { context, threads: self.threads });
            Ok(())
        })
    }
}

/// `PrefixAttention(query, key, value, prefix_keys, prefix_values, last_index)`, of the attributes
/// `heads`, `layer` and `pooled`, as `crates/graph` writes it for CLIP's text tower.
struct PrefixOperator {
    threads: usize,
    instructions: Instructions,
}

struct PrefixKernel {
    heads: usize,
    layer: usize,
    pooled: bool,
    threads: usize,
    instructions: Instructions,
}

impl Operator for PrefixOperator {
    type Kernel<'attr> = PrefixKernel;

    fn name(&self) -> &str {
        "PrefixAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let [a, b, c, d, e] = [(); 5].map(|()| OperatorInput::required(F32));
        [a, b, c, d, e, OperatorInput::required(TensorElementType::Int64)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(PrefixKernel {
            heads: attribute(context, "heads")?,
            layer: attribute(context, "layer")?,
            pooled: attribute(context, "pooled")? == 1,
            threads: self.threads,
            instructions: self.instructions,
        })
    }
}

impl Kernel for PrefixKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(|| {
            let mut given = Vec::with_capacity(6);
            for index in 0..6 {
                given.push(context.input(index)?.ok_or_else(|| missing("input"))?);
            }
            let (shape, query) = floats(&given[0])?;
            let (key_shape, keys) = floats(&given[1])?;
            let (_, values) = floats(&given[2])?;
            let (prefix_shape, prefix_keys) = floats(&given[3])?;
            let (_, prefix_values) = floats(&given[4])?;
            let (_, places) = given[5].try_extract_tensor::<i64>()?;
            let layer = prefix_shape[1..].iter().product::<i64>() as usize;
            let layer = self.layer * layer..(self.layer + 1) * layer;
            let attention = PrefixAttention {
                heads: self.heads,
                head_dim: prefix_shape[3] as usize,
                prefix_keys: &prefix_keys[layer.clone()],
                prefix_values: &prefix_values[layer],
                keys,
                values,
                length: key_shape[0] as usize / places.len().max(1),
                instructions: self.instructions,
            };
            let queries = match self.pooled {
                true => Queries::Pooled(query, places),
                false => Queries::All(query),
            };
            let mut out = context.output(0, shape.to_vec())?.ok_or_else(|| missing("output"))?;
            let (_, out) = out.try_extract_tensor_mut::<f32>()?;
            attention.run(queries, out, &Pool { context, threads: self.threads });
            Ok(())
        })
    }
}

/// `CachedAttention(query, keys, values, positions?, mask?)`, of the attributes `heads`, `head_dim`
/// and `scaled`, as `crates/graph` writes it for decoders.
struct CacheOperator {
    threads: usize,
}

struct CacheKernel {
    heads: usize,
    head_dim: usize,
    scaled: bool,
    threads: usize,
}

impl Operator for CacheOperator {
    type Kernel<'attr> = CacheKernel;

    fn name(&self) -> &str {
        "CachedAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let [a, b, c] = [(); 3].map(|()| OperatorInput::required(F32));
        let positions = OperatorInput::optional(TensorElementType::Int64);
        [a, b, c, positions, OperatorInput::optional(TensorElementType::Bool)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(CacheKernel {
            heads: attribute(context, "heads")?,
            head_dim: attribute(context, "head_dim")?,
            scaled: attribute(context, "scaled")? == 1,
            threads: self.threads,
        })
    }
}

impl Kernel for CacheKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(|| {
            let given = |index| context.input(index)?.ok_or_else(|| missing("input"));
            let (query, keys, values) = (given(0)?, given(1)?, given(2)?);
            let (positions, mask) = (context.input(3)?, context.input(4)?);
            let (shape, query) = floats(&query)?;
            let (slab, keys) = floats(&keys)?;
            let (_, values) = floats(&values)?;
            let [_, heads, max_length, head_dim] = *slab else { return Err(missing("cache")) };
            if (heads, head_dim) != (self.heads as i64, self.head_dim as i64) {
                return Err(ort::Error::new(format!(
                    "a cache of {heads} heads of {head_dim}, not {} of {}",
                    self.heads, self.head_dim
                )));
            }
            let length = positions
                .map(|positions| positions.try_extract_tensor::<i64>().map(|(_, all)| all.len()));
            let mask = mask.as_ref().map(|mask| mask.try_extract_tensor::<bool>()).transpose()?;
            let attention = CachedAttention {
                heads: self.heads,
                head_dim: self.head_dim,
                max_length: max_length as usize,
                keys,
                values,
                length: length.transpose()?.unwrap_or(max_length as usize),
                mask: mask.map(|(_, mask)| mask),
                scale: if self.scaled { (self.head_dim as f32).sqrt().recip() } else { 1.0 },
            };
            let mut out = context.output(0, shape.to_vec())?.ok_or_else(|| missing("output"))?;
            let (_, out) = out.try_extract_tensor_mut::<f32>()?;
            attention.run(query, out, &Pool { context, threads: self.threads });
            Ok(())
        })
    }
}
