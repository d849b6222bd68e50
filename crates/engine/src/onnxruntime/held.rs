//! Values of ONNX Runtime and the memory they show.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use half::{bf16, f16};
use imprompt_error::{Error, Result};
use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::SharedSessionInner;
use ort::sys::{ONNXTensorElementDataType as Number, OrtValue};

use super::status;
use crate::{Data, ElementType, Held, TensorView};

/// The element type ONNX Runtime calls `number`.
pub fn element_type(number: Number) -> Option<ElementType> {
    Some(match number {
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => ElementType::F32,
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => ElementType::F16,
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 => ElementType::Bf16,
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 => ElementType::I64,
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 => ElementType::I32,
        Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 => ElementType::U8,
        _ => return None,
    })
}

fn number(element_type: ElementType) -> Number {
    match element_type {
        ElementType::F32 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::F16 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        ElementType::Bf16 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        ElementType::I64 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ElementType::I32 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ElementType::U8 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
    }
}

/// Turns a status into a result; `what` is what the call was about.
pub fn check(status: ort::sys::OrtStatusPtr, what: &str) -> Result<()> {
    // SAFETY: the status comes from a call of the API and is given away here.
    unsafe { ort::Error::result_from_status(status) }.map_err(|error| status::error(&error, what))
}

/// A value, released when dropped.
#[derive(Debug)]
pub struct RawValue(NonNull<OrtValue>);

// SAFETY: a value is a reference-counted tensor, tied to no thread.
unsafe impl Send for RawValue {}

// SAFETY: through a shared reference its pointer is read and nothing is changed.
unsafe impl Sync for RawValue {}

impl RawValue {
    /// Takes a value over from the API.
    ///
    /// # Safety
    /// `pointer` is a value that the API gave away, or null.
    pub unsafe fn take(pointer: *mut OrtValue) -> Option<Self> {
        NonNull::new(pointer).map(RawValue)
    }

    /// A tensor over `bytes` bytes of host memory at `data`.
    ///
    /// # Safety
    /// The memory holds elements of `element_type` that fill `shape`, outlives
    /// the value, and is not written elsewhere while a run uses the value; a
    /// run that is given it as an output may write it.
    pub unsafe fn over(
        memory: &MemoryInfo<'static>,
        data: *mut c_void,
        bytes: usize,
        shape: &[i64],
        element_type: ElementType,
    ) -> Result<Self> {
        let mut value = std::ptr::null_mut();
        // SAFETY: the arguments are live for the call; the memory is the
        // caller's promise.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data,
                bytes,
                shape.as_ptr(),
                shape.len(),
                number(element_type),
                &mut value,
            )
        };
        check(status, "a tensor")?;
        NonNull::new(value).map(RawValue).ok_or_else(|| Error::internal("a tensor is null"))
    }

    /// A tensor that a run may read, over `view`.
    ///
    /// # Safety
    /// `view` outlives the value, and the value is given to runs as an input
    /// only.
    pub unsafe fn over_view(memory: &MemoryInfo<'static>, view: &TensorView<'_>) -> Result<Self> {
        let data: *const c_void = match view.data() {
            Data::F32(data) => data.as_ptr().cast(),
            Data::F16(data) => data.as_ptr().cast(),
            Data::Bf16(data) => data.as_ptr().cast(),
            Data::I64(data) => data.as_ptr().cast(),
            Data::I32(data) => data.as_ptr().cast(),
            Data::U8(data) => data.as_ptr().cast(),
        };
        let element_type = view.element_type();
        let bytes = view.data().len() * element_type.size();
        let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
        // SAFETY: a view's shape and elements agree; the rest is promised.
        unsafe { Self::over(memory, data.cast_mut(), bytes, &shape, element_type) }
    }

    /// The value for the API.
    pub fn pointer(&self) -> *mut OrtValue {
        self.0.as_ptr()
    }
}

impl Drop for RawValue {
    fn drop(&mut self) {
        // SAFETY: the value is owned and not used after this.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor that a run has made.
#[derive(Debug)]
pub struct OnnxHeld {
    value: RawValue,
    element_type: ElementType,
    shape: Vec<usize>,
    data: NonNull<c_void>,
    /// The value's memory belongs to the session's allocator.
    _session: Arc<SharedSessionInner>,
}

// SAFETY: the value and the session may be used from any thread; `data` points
// into the value, which nothing writes once the run is over.
unsafe impl Send for OnnxHeld {}

// SAFETY: through a shared reference it is read alone.
unsafe impl Sync for OnnxHeld {}

impl OnnxHeld {
    /// Takes over the output `name` of a run of `session`.
    pub fn new(value: RawValue, name: &str, session: Arc<SharedSessionInner>) -> Result<Self> {
        let (element_type, shape) = type_and_shape(&value, name)?;
        let mut data = std::ptr::null_mut();
        // SAFETY: the value is a live tensor.
        let status = unsafe { (ort::api().GetTensorMutableData)(value.pointer(), &mut data) };
        check(status, name)?;
        // An empty tensor may have no memory at all; a slice needs an aligned
        // address all the same.
        let data = NonNull::new(data).unwrap_or(NonNull::<u64>::dangling().cast());
        Ok(OnnxHeld { value, element_type, shape, data, _session: session })
    }

    /// The value for the API.
    pub fn pointer(&self) -> *mut OrtValue {
        self.value.pointer()
    }
}

/// The tensor at `data`.
///
/// # Safety
/// There are as many aligned elements of the type as fill `shape`, and nothing writes them as long
/// as the view is there.
pub unsafe fn view(
    shape: &[usize],
    element_type: ElementType,
    data: *const c_void,
) -> Result<TensorView<'_>> {
    let count = shape.iter().product();
    macro_rules! elements {
        ($type:ty) => {{
            // SAFETY: the caller's word.
            let elements = unsafe { std::slice::from_raw_parts::<$type>(data.cast(), count) };
            TensorView::new(shape, elements)
        }};
    }
    match element_type {
        ElementType::F32 => elements!(f32),
        ElementType::F16 => elements!(f16),
        ElementType::Bf16 => elements!(bf16),
        ElementType::I64 => elements!(i64),
        ElementType::I32 => elements!(i32),
        ElementType::U8 => elements!(u8),
    }
}

/// What a run has made: the type of its elements and its dimensions.
pub fn type_and_shape(value: &RawValue, name: &str) -> Result<(ElementType, Vec<usize>)> {
    let api = ort::api();
    let mut info = std::ptr::null_mut();
    // SAFETY: the value is a live tensor.
    check(unsafe { (api.GetTensorTypeAndShape)(value.pointer(), &mut info) }, name)?;
    let mut kind = Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let mut rank = 0;
    let mut dims = Vec::new();
    // SAFETY: the info is live until it is released below; `dims` has room for
    // as many entries as the call is told.
    let read = unsafe {
        check((api.GetTensorElementType)(info, &mut kind), name)
            .and_then(|()| check((api.GetDimensionsCount)(info, &mut rank), name))
            .and_then(|()| {
                dims.resize(rank, 0i64);
                check((api.GetDimensions)(info, dims.as_mut_ptr(), rank), name)
            })
    };
    // SAFETY: the info is not used after this.
    unsafe { (api.ReleaseTensorTypeAndShapeInfo)(info) };
    read?;
    let element_type = element_type(kind).ok_or_else(|| {
        Error::internal(format!("output {name} has elements of a type ({kind:?}) not known here"))
    })?;
    let shape = dims
        .into_iter()
        .map(|dim| usize::try_from(dim).map_err(|_| Error::internal(format!("{name}: {dim}"))))
        .collect::<Result<_>>()?;
    Ok((element_type, shape))
}

impl Held for OnnxHeld {
    fn element_type(&self) -> ElementType {
        self.element_type
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_host(&self) -> Result<TensorView<'_>> {
        // SAFETY: the value is a tensor of this shape and type at `data`, in host memory, aligned by
        // the allocator, and nothing writes it while `self` is borrowed.
        unsafe { view(&self.shape, self.element_type, self.data.as_ptr()) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
