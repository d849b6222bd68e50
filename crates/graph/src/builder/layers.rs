//! Layers of several nodes, with the parameters a checkpoint keeps for them.

use imprompt_error::{Error, Result};

use super::{Attribute, GraphBuilder, Value};

/// `hidden_act` of a configuration, by the names transformers has for them
/// (`transformers/activations.py`, `ACT2FN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gelu`: `x * Phi(x)` with the error function.
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the tanh form.
    GeluTanh,
    /// `quick_gelu`: `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `relu`.
    Relu,
    /// `silu`, `swish`: `x * sigmoid(x)`.
    Silu,
}

impl Activation {
    /// The activation called `name`.
    ///
    /// # Errors
    /// `Unsupported` when it is none of these; `key` names it in the message.
    pub fn from_name(key: &str, name: &str) -> Result<Self> {
        match name {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => {
                Ok(Activation::GeluTanh)
            }
            "quick_gelu" => Ok(Activation::QuickGelu),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(Error::unsupported(format!(
                "{key} is {other:?}; gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, \
                 relu, silu and swish are supported"
            ))),
        }
    }
}

/// A linear layer's parameters by name and size.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeights<'a> {
    /// The layer's name: its tensors are `{name}.weight` and `{name}.bias`.
    pub name: &'a str,
    /// Width of what goes in.
    pub input: usize,
    /// Width of what comes out.
    pub output: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionHeads {
    /// Heads, of queries, keys and values.
    pub heads: usize,
    /// Width of one.
    pub head_dim: usize,
}

impl GraphBuilder<'_> {
    /// A linear layer on rows: `[n, input]` to `[n, output]`. The weight lies as
    /// Hugging Face stores it, `[output, input]`, and is used as it lies.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn linear(&mut self, rows: &Value, layer: LinearWeights<'_>) -> Result<Value> {
        let weight =
            self.weight(&format!("{}.weight", layer.name), &[layer.output, layer.input])?;
        if !layer.bias {
            return Ok(self.gemm(rows, &weight, None));
        }
        let bias = self.weight(&format!("{}.bias", layer.name), &[layer.output])?;
        Ok(self.gemm(rows, &weight, Some(&bias)))
    }

    /// `rows * weight^T + bias` for `rows` `[n, in]` and `weight` `[out, in]`.
    pub fn gemm(&mut self, rows: &Value, weight: &Value, bias: Option<&Value>) -> Value {
        let mut inputs = vec![Some(rows), Some(weight)];
        inputs.extend(bias.map(Some));
        self.nodes("Gemm", &inputs, 1, &[("transB", Attribute::Int(1))]).swap_remove(0)
    }

    /// Layer normalisation over the last dimension with `{name}.weight` and
    /// `{name}.bias`.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn layer_norm(
        &mut self,
        data: &Value,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<Value> {
        let weight = self.weight(&format!("{name}.weight"), &[width])?;
        let bias = self.weight(&format!("{name}.bias"), &[width])?;
        Ok(self.node(
            "LayerNormalization",
            &[data, &weight, &bias],
            &[("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))],
        ))
    }

    /// The activation of each element.
    pub fn activation(&mut self, data: &Value, activation: Activation) -> Value {
        match activation {
            Activation::Gelu => self.node("Gelu", &[data], &[]),
            Activation::GeluTanh => {
                self.node("Gelu", &[data], &[("approximate", Attribute::Text("tanh"))])
            }
            Activation::QuickGelu => {
                let factor = self.float(1.702);
                let scaled = self.mul(data, &factor);
                let gate = self.sigmoid(&scaled);
                self.mul(data, &gate)
            }
            Activation::Relu => self.node("Relu", &[data], &[]),
            Activation::Silu => {
                let gate = self.sigmoid(data);
                self.mul(data, &gate)
            }
        }
    }

    /// The patches of `image` `[batch, channels, height, width]` as
    /// `[batch, output, height / patch, width / patch]`, with `{name}.weight`
    /// and, where it has one, `{name}.bias`.
    ///
    /// # Errors
    /// As [`GraphBuilder::weight`].
    pub fn patch_convolution(
        &mut self,
        image: &Value,
        layer: LinearWeights<'_>,
        patch: usize,
    ) -> Result<Value> {
        let name = format!("{}.weight", layer.name);
        let weight = self.weight(&name, &[layer.output, layer.input, patch, patch])?;
        let bias = match layer.bias {
            true => Some(self.weight(&format!("{}.bias", layer.name), &[layer.output])?),
            false => None,
        };
        let mut inputs = vec![Some(image), Some(&weight)];
        inputs.extend(bias.as_ref().map(Some));
        let sides = || Attribute::Ints(vec![patch as i64; 2]);
        let attributes = [("kernel_shape", sides()), ("strides", sides())];
        Ok(self.nodes("Conv", &inputs, 1, &attributes).swap_remove(0))
    }

    /// Opset 23 `Attention` over `[batch, length, heads * head_dim]` tensors, scaled by
    /// `1 / sqrt(head_dim)`, with an additive float or boolean mask that broadcasts to
    /// `[batch, heads, queries, keys]`.
    ///
    /// TensorRT has kernels for it in float16; in float32 it refuses, use
    /// [`Self::attention_decomposed`] there.
    pub fn attention(
        &mut self,
        [query, key, value]: [&Value; 3],
        mask: Option<&Value>,
        heads: AttentionHeads,
    ) -> Value {
        let AttentionHeads { heads, head_dim } = heads;
        let mut inputs = vec![Some(query), Some(key), Some(value)];
        inputs.extend(mask.map(Some));
        let attributes = [
            ("kv_num_heads", Attribute::Int(heads as i64)),
            ("q_num_heads", Attribute::Int(heads as i64)),
            ("scale", Attribute::Float((head_dim as f32).sqrt().recip())),
        ];
        let write =
            |graph: &mut Self| graph.nodes("Attention", &inputs, 1, &attributes).swap_remove(0);
        match mask {
            None => self.fused("Attention", &inputs, &[("heads", heads as i64)], write),
            Some(_) => write(self),
        }
    }

    /// Attention over `[batch, heads, length, width]` tensors in plain
    /// operators, scaled by `scale`, with an additive mask.
    pub fn attention_decomposed(
        &mut self,
        [query, key, value]: [&Value; 3],
        mask: Option<&Value>,
        scale: f32,
    ) -> Value {
        let scale = self.float(scale);
        let query = self.mul(query, &scale);
        let key = self.transpose(key, &[0, 1, 3, 2]);
        let mut scores = self.matmul(&query, &key);
        if let Some(mask) = mask {
            scores = self.add(&scores, mask);
        }
        let weights = self.softmax(&scores, -1);
        self.matmul(&weights, value)
    }
}
