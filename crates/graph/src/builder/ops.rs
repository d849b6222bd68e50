//! One operator a method, in the form the graphs of this crate use.

use super::{Attribute, GraphBuilder, Type, Value};

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident => $operator:literal),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $method(&mut self, a: &Value, b: &Value) -> Value {
            self.node($operator, &[a, b], &[])
        }
    )+};
}

impl GraphBuilder<'_> {
    binary! {
        /// `a + b`, broadcast.
        add => "Add",
        /// `a - b`, broadcast.
        sub => "Sub",
        /// `a * b`, broadcast.
        mul => "Mul",
        /// `a / b`, broadcast.
        div => "Div",
        /// The matrix product over the last two dimensions, broadcast over the others.
        matmul => "MatMul",
        /// `a > b`, broadcast.
        greater => "Greater",
        /// `data` broadcast to `shape` (a 1-D integer tensor).
        expand => "Expand",
        /// `data` in the shape `shape` (a 1-D integer tensor).
        reshape_to => "Reshape",
    }

    /// `a` where `condition`, else `b`.
    pub fn select(&mut self, condition: &Value, a: &Value, b: &Value) -> Value {
        self.node("Where", &[condition, a, b], &[])
    }

    /// `data` in a shape known beforehand; 0 keeps a dimension, -1 takes the rest.
    pub fn reshape(&mut self, data: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.reshape_to(data, &shape)
    }

    /// The dimensions in the order `permutation`.
    pub fn transpose(&mut self, data: &Value, permutation: &[i64]) -> Value {
        self.node("Transpose", &[data], &[("perm", Attribute::Ints(permutation.to_vec()))])
    }

    /// The tensors one after the other along `axis`.
    pub fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        self.node("Concat", parts, &[("axis", Attribute::Int(axis))])
    }

    /// The entries `indices` along `axis`; the dimension of `axis` becomes the
    /// dimensions of `indices`.
    pub fn gather(&mut self, data: &Value, indices: &Value, axis: i64) -> Value {
        self.node("Gather", &[data, indices], &[("axis", Attribute::Int(axis))])
    }

    /// `data[start..end]` along `axis`; `start` and `end` of shape `[1]`.
    pub fn slice(&mut self, data: &Value, start: &Value, end: &Value, axis: i64) -> Value {
        let axes = self.ints(&[axis]);
        self.node("Slice", &[data, start, end, &axes], &[])
    }

    /// `data[start..end]` along `axis`, known beforehand.
    pub fn slice_fixed(&mut self, data: &Value, start: i64, end: i64, axis: i64) -> Value {
        let (start, end) = (self.ints(&[start]), self.ints(&[end]));
        self.slice(data, &start, &end, axis)
    }

    /// `data` in parts of the sizes `sizes` (a 1-D integer tensor of `parts`
    /// entries) along `axis`.
    pub fn split(&mut self, data: &Value, sizes: &Value, parts: usize, axis: i64) -> Vec<Value> {
        self.nodes("Split", &[Some(data), Some(sizes)], parts, &[("axis", Attribute::Int(axis))])
    }

    /// Dimensions of length 1 at `axes`.
    pub fn unsqueeze(&mut self, data: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.node("Unsqueeze", &[data, &axes], &[])
    }

    /// Without the dimensions of length 1 at `axes`.
    pub fn squeeze(&mut self, data: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.node("Squeeze", &[data, &axes], &[])
    }

    /// The length of dimension `axis`, shape `[1]`.
    pub fn dim(&mut self, data: &Value, axis: i64) -> Value {
        let mut attributes = vec![("start", Attribute::Int(axis))];
        if axis != -1 {
            attributes.push(("end", Attribute::Int(axis + 1)));
        }
        self.node("Shape", &[data], &attributes)
    }

    /// `0, 1, ... end - 1`; `end` of shape `[1]`.
    pub fn arange(&mut self, end: &Value) -> Value {
        let (start, step) = (self.int(0), self.int(1));
        let end = self.squeeze(end, &[0]);
        self.node("Range", &[&start, &end, &step], &[])
    }

    /// A tensor of `shape` (a 1-D integer tensor) filled with `value`.
    pub fn full(&mut self, shape: &Value, value: f32) -> Value {
        let value = self.float(value);
        self.expand(&value, shape)
    }

    /// The part of each matrix above diagonal `k`, zero elsewhere.
    pub fn upper_triangle(&mut self, data: &Value, k: i64) -> Value {
        let k = self.int(k);
        self.node("Trilu", &[data, &k], &[("upper", Attribute::Int(1))])
    }

    /// The elements as another type.
    pub fn cast(&mut self, data: &Value, to: Type) -> Value {
        self.node("Cast", &[data], &[("to", Attribute::Int(i64::from(to.number())))])
    }

    /// Softmax along `axis`.
    pub fn softmax(&mut self, data: &Value, axis: i64) -> Value {
        self.node("Softmax", &[data], &[("axis", Attribute::Int(axis))])
    }

    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(&mut self, data: &Value) -> Value {
        self.node("Sigmoid", &[data], &[])
    }

    /// The sum along `axes`, which stay with length 1.
    pub fn reduce_sum(&mut self, data: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.node("ReduceSum", &[data, &axes], &[])
    }

    /// The rows divided by their L2 norm, as the references do: no epsilon.
    pub fn l2_normalize(&mut self, data: &Value) -> Value {
        let axes = self.ints(&[-1]);
        let norm = self.node("ReduceL2", &[data, &axes], &[]);
        self.div(data, &norm)
    }

    /// The absolute lowest float32, which masks a score in softmax.
    pub fn lowest(&mut self) -> Value {
        self.float(f32::MIN)
    }

    /// `update` written over `past` from `write_indices` (one for each batch
    /// entry, shape `[batch]`) on along `axis`. Bound to one buffer, past and
    /// result are the same memory and nothing is copied.
    pub fn tensor_scatter(
        &mut self,
        past: &Value,
        update: &Value,
        write_indices: &Value,
        axis: i64,
    ) -> Value {
        self.node(
            "TensorScatter",
            &[past, update, write_indices],
            &[("axis", Attribute::Int(axis))],
        )
    }
}
