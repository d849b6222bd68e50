//! Weights in fewer bits: a graph's linear layers over matrices of a file of its own.
//!
//! The graph stays one in standard operators: int8 and int4 matrices go through
//! `DequantizeLinear`, float16 ones through `Cast`. An engine that multiplies them as they
//! are looks through these nodes; another folds them when it loads the graph.
//!
//! | [`Form`] | stored | scale |
//! |---|---|---|
//! | `F16` | float16, where every value of the matrix is one | none |
//! | `Int8` | signed bytes, symmetric | float32, one an output |
//! | `Int4` | signed nibbles, symmetric | float32, one for 64 inputs of an output |
//!
//! A matrix that a form does not suit stays nearer to what it was: int4 needs a multiple of 64
//! inputs, and the head of a decoder, with many more outputs than inputs, decides between tokens;
//! both are stored as int8.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::{bf16, f16};
use imprompt_error::{Error, Result};
use imprompt_kernel::quantized::{INT4_GROUP, Quantized, to_int4, to_int8};
use imprompt_onnx as onnx;
use prost::Message;

use crate::builder::Graph;

/// How the matrices of linear layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// float16 where that is lossless.
    F16,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
}

/// Matrices that are smaller than this stay as they are: nothing is won.
const LEAST: usize = 4096;
/// Outputs for each input from which on a layer is a decoder's head.
const HEAD: usize = 8;
/// Where a matrix begins in the file: a line of the processor's cache.
const ALIGNMENT: u64 = 64;
/// Values that are converted at a time.
const AT_ONCE: usize = 1 << 22;

/// A matrix in the model's files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    file: String,
    offset: u64,
    /// Of the elements.
    data_type: i32,
    outputs: usize,
    inputs: usize,
}

impl Source {
    fn of(tensor: &onnx::Tensor) -> Option<Self> {
        let (outputs, inputs) = tensor.matrix()?;
        let (data_type, piece) = (tensor.data_type?, tensor.external()?);
        let is_float = matches!(data_type, onnx::FLOAT | onnx::FLOAT16 | onnx::BFLOAT16);
        let large = is_float && outputs * inputs >= LEAST;
        let file = piece.location.to_owned();
        large.then_some(Source { file, offset: piece.offset, data_type, outputs, inputs })
    }

    fn bytes_each(&self) -> usize {
        if self.data_type == onnx::FLOAT { 4 } else { 2 }
    }

    /// Calls `each` with some whole rows at a time, until it has seen enough.
    fn read(
        &self,
        folder: &Path,
        mut each: impl FnMut(&[f32]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let path = folder.join(&self.file);
        let failed =
            |error: std::io::Error| Error::bad_model(format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(failed)?;
        let rows = (AT_ONCE / self.inputs).max(1);
        let mut floats = Vec::with_capacity(rows * self.inputs);
        let mut bytes = Vec::new();
        for first in (0..self.outputs).step_by(rows) {
            let rows = rows.min(self.outputs - first);
            bytes.resize(rows * self.inputs * self.bytes_each(), 0);
            let start = (first * self.inputs * self.bytes_each()) as u64;
            file.read_exact_at(&mut bytes, self.offset + start).map_err(failed)?;
            floats.clear();
            match self.data_type {
                onnx::FLOAT => {
                    floats.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                }
                onnx::FLOAT16 => {
                    let values = bytes.as_chunks().0.iter();
                    floats.extend(values.map(|b| f16::from_le_bytes(*b).to_f32()));
                }
                _ => {
                    let values = bytes.as_chunks().0.iter();
                    floats.extend(values.map(|b| bf16::from_le_bytes(*b).to_f32()));
                }
            }
            if each(&floats)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Whether float16 holds every value.
    fn is_half(&self, folder: &Path) -> Result<bool> {
        let mut lossless = true;
        self.read(folder, |values| {
            lossless = values.iter().all(|v| f16::from_f32(*v).to_f32().to_bits() == v.to_bits());
            Ok(if lossless { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(lossless)
    }

    /// The form it gets; `None` where it stays as it is.
    fn form(&self, wanted: Form, folder: &Path) -> Result<Option<Form>> {
        Ok(match wanted {
            Form::F16 if self.data_type != onnx::FLOAT || !self.is_half(folder)? => None,
            Form::Int4 if self.outputs >= HEAD * self.inputs => Some(Form::Int8),
            Form::Int4 if !self.inputs.is_multiple_of(INT4_GROUP) => Some(Form::Int8),
            wanted => Some(wanted),
        })
    }

    /// Elements of the values and of the scales, and bytes of the values.
    fn sizes(&self, form: Form) -> (u64, u64) {
        let count = (self.outputs * self.inputs) as u64;
        match form {
            Form::F16 => (2 * count, 0),
            Form::Int8 => (count, 4 * self.outputs as u64),
            Form::Int4 => (count / 2, 4 * count / INT4_GROUP as u64),
        }
    }
}

/// A matrix of the new file.
#[derive(Clone, Debug)]
struct Placed {
    source: Source,
    form: Form,
    values: u64,
    scales: u64,
}

/// What the new file will hold.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    placed: Vec<Placed>,
    end: u64,
}

impl Plan {
    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Whether there is nothing to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    fn place(&mut self, source: Source, form: Form) -> &Placed {
        let (values, scales) = source.sizes(form);
        let start = self.end.next_multiple_of(ALIGNMENT);
        let scales_start = (start + values).next_multiple_of(ALIGNMENT);
        self.end = scales_start + scales;
        self.placed.push(Placed { source, form, values: start, scales: scales_start });
        &self.placed[self.placed.len() - 1]
    }

    /// Writes the file `path` from the weights of the model in `folder`; `advance` hears of every
    /// so many bytes. A few megabytes of the weights are in memory at a time.
    ///
    /// # Errors
    /// `BadModel` naming the file that cannot be read; `Internal` naming the one that cannot
    /// be written.
    pub fn write(&self, folder: &Path, path: &Path, advance: &dyn Fn(u64)) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::internal(format!("cannot write {}: {error}", path.display()))
        };
        let mut file = File::create(path).map_err(failed)?;
        file.set_len(self.end).map_err(failed)?;
        for Placed { source, form, values, scales } in &self.placed {
            file.seek(SeekFrom::Start(*values)).map_err(failed)?;
            let mut out = BufWriter::new(&file);
            let mut all_scales = Vec::new();
            source.read(folder, |rows| {
                let bytes = match form {
                    Form::F16 => {
                        rows.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
                    }
                    Form::Int8 | Form::Int4 => {
                        let Quantized { values, scales } = match form {
                            Form::Int4 => to_int4(rows),
                            _ => to_int8(rows, source.inputs),
                        };
                        all_scales.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
                        values
                    }
                };
                advance(bytes.len() as u64);
                out.write_all(&bytes).map_err(failed).map(ControlFlow::Continue)
            })?;
            out.flush().map_err(failed)?;
            drop(out);
            file.write_all_at(&all_scales, *scales).map_err(failed)?;
        }
        Ok(())
    }
}

/// `graph` with the matrices of its linear layers in another form, in a file called `name` that
/// [`Plan::write`] makes; `folder` is the model's.
///
/// # Errors
/// `BadModel` naming the weight file that cannot be read; `Internal` when the graph is none.
pub fn quantize(graph: &Graph, form: Form, name: &str, folder: &Path) -> Result<(Graph, Plan)> {
    let mut model = graph.model()?;
    let mut plan = Plan::default();
    let Some(inner) = model.graph.as_mut() else { return Ok((graph.clone(), plan)) };
    let tensors: HashMap<&str, &onnx::Tensor> =
        inner.initializer.iter().map(|t| (t.name.as_deref().unwrap_or_default(), t)).collect();
    let casts: HashMap<&str, &str> = inner
        .node
        .iter()
        .filter(|node| node.is("Cast"))
        .map(|node| (node.output[0].as_str(), node.input[0].as_str()))
        .collect();
    // By the weight's name: the node and the initializers that give it in its new form.
    let mut made: HashMap<String, onnx::Node> = HashMap::new();
    let mut added = Vec::new();
    for node in inner.node.iter().filter(|node| node.is_linear()) {
        let name_of = node.input[1].as_str();
        let stored = casts.get(name_of).copied().unwrap_or(name_of);
        let source = tensors.get(stored).and_then(|tensor| Source::of(tensor));
        let (Some(source), false) = (source, made.contains_key(name_of)) else { continue };
        let Some(form) = source.form(form, folder)? else { continue };
        let placed = plan.place(source, form);
        let (node, tensors) = nodes(name_of, placed, name);
        made.insert(name_of.to_owned(), node);
        added.extend(tensors);
    }
    if made.is_empty() {
        return Ok((graph.clone(), plan));
    }
    for node in inner.node.iter_mut().filter(|node| node.is_linear()) {
        if let Some(new) = made.get(&node.input[1]) {
            node.input[1].clone_from(&new.output[0]);
        }
    }
    // In front: they depend on nothing.
    let mut first: Vec<onnx::Node> = made.into_values().collect();
    first.sort_by(|a, b| a.name.cmp(&b.name));
    inner.node.splice(0..0, first);
    inner.initializer.extend(added);
    inner.drop_unread();
    let opset = if form == Form::Int4 { graph.opset.max(21) } else { graph.opset };
    let weight_files = inner.initializer.iter().filter_map(|tensor| tensor.external());
    let weight_files = weight_files.filter(|piece| piece.location != name);
    let weight_files = weight_files.map(|piece| piece.location.to_owned()).collect();
    model.set_opset(opset);
    Ok((Graph { bytes: model.encode_to_vec(), weight_files, opset }, plan))
}

/// The node that gives the weight `name` out of the file `file`, and what it reads.
fn nodes(name: &str, placed: &Placed, file: &str) -> (onnx::Node, Vec<onnx::Tensor>) {
    let Placed { source, form, values, scales } = placed;
    let (outputs, inputs) = (source.outputs as i64, source.inputs as i64);
    let (bytes, scale_bytes) = source.sizes(*form);
    let tensor = |suffix: &str, data_type: i32, dims: Vec<i64>, offset: u64, length: u64| {
        let piece = onnx::External { location: file, offset, length };
        onnx::Tensor::stored(format!("{name}.{suffix}"), data_type, dims, piece)
    };
    let shape = vec![outputs, inputs];
    let (suffix, data_type, scale) = match form {
        Form::F16 => ("f16", onnx::FLOAT16, None),
        Form::Int8 => ("int8", onnx::INT8, Some(vec![outputs])),
        Form::Int4 => ("int4", onnx::INT4, Some(vec![outputs, inputs / INT4_GROUP as i64])),
    };
    let mut tensors = vec![tensor(suffix, data_type, shape, *values, bytes)];
    tensors.extend(scale.map(|dims| tensor("scale", onnx::FLOAT, dims, *scales, scale_bytes)));
    let integer = onnx::Attribute::integer;
    let (operator, attribute) = match form {
        Form::F16 => ("Cast", vec![integer("to", i64::from(onnx::FLOAT))]),
        Form::Int8 => ("DequantizeLinear", vec![integer("axis", 0)]),
        Form::Int4 => {
            ("DequantizeLinear", vec![integer("axis", 1), integer("block_size", INT4_GROUP as i64)])
        }
    };
    let node = onnx::Node {
        input: tensors.iter().filter_map(|tensor| tensor.name.clone()).collect(),
        output: vec![format!("{name}.{suffix}.f32")],
        name: Some(format!("{name}.{suffix}")),
        op_type: Some(operator.to_owned()),
        attribute,
        doc_string: None,
        domain: None,
    };
    (node, tensors)
}
