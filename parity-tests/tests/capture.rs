//! Steps that are captured as a CUDA graph: a replay gives the losses that a call gives.
//!
//! libtorch's `at::cuda::CUDAGraph` is used by the names of its members, since its header needs those of CUDA.

use std::ffi::{CStr, c_int, c_void};
use std::mem::transmute;

use tch::{Cuda, Device, Kind, Tensor};
use tch_losses::{
    BceLoss, CosineEmbeddingLoss, CrossEntropyLoss, DiceLoss, InvalidValues, Loss, MseLoss, NllLoss, SigmoidFocalLoss,
    SoftmaxFocalLoss,
};

/// A function of the libraries that are loaded.
fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a look for a name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

type OfGraph = unsafe extern "C-unwind" fn(*mut c_void);
type Make = unsafe extern "C-unwind" fn(*mut c_void, bool);
type Begin = unsafe extern "C-unwind" fn(*mut c_void, u64, u64, c_int);
type UseStream = unsafe extern "C" fn(*mut c_void, i32, *mut *mut c_void) -> i32;
type StopUsing = unsafe extern "C" fn(*mut c_void) -> i32;

/// What is called of libtorch and of the driver.
struct Functions {
    make: Make,
    begin: Begin,
    end: OfGraph,
    replay: OfGraph,
    destroy: OfGraph,
    use_stream: UseStream,
    stop_using: StopUsing,
}

impl Functions {
    /// None where this libtorch is one for the CPU alone.
    fn find() -> Option<Self> {
        symbol(c"aoti_torch_get_current_cuda_stream")?;
        let function = |name: &CStr| symbol(name).unwrap_or_else(|| panic!("this libtorch has no {name:?}"));
        // SAFETY: these functions have these signatures, as CUDAGraph.h and shim.h declare them.
        unsafe {
            Some(Self {
                make: transmute::<*mut c_void, Make>(function(c"_ZN2at4cuda9CUDAGraphC1Eb")),
                begin: transmute::<*mut c_void, Begin>(function(
                    c"_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode",
                )),
                end: transmute::<*mut c_void, OfGraph>(function(c"_ZN2at4cuda9CUDAGraph11capture_endEv")),
                replay: transmute::<*mut c_void, OfGraph>(function(c"_ZN2at4cuda9CUDAGraph6replayEv")),
                destroy: transmute::<*mut c_void, OfGraph>(function(c"_ZN2at4cuda9CUDAGraphD1Ev")),
                use_stream: transmute::<*mut c_void, UseStream>(function(c"aoti_torch_create_cuda_stream_guard")),
                stop_using: transmute::<*mut c_void, StopUsing>(function(c"aoti_torch_delete_cuda_stream_guard")),
            })
        }
    }
}

/// The current stream of the first GPU is one of its own, as a capture needs it, as long as this lives.
struct OwnStream<'a> {
    functions: &'a Functions,
    guard: *mut c_void,
}

impl<'a> OwnStream<'a> {
    fn new(functions: &'a Functions) -> Self {
        type Create = unsafe extern "C" fn(*mut *mut c_void, u32) -> c_int;
        const NON_BLOCKING: u32 = 1;
        let create = symbol(c"cuStreamCreate").or_else(|| {
            // SAFETY: the driver, which libtorch has loaded.
            let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            (!driver.is_null()).then(|| symbol(c"cuStreamCreate"))?
        });
        let (mut stream, mut guard) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both places are written before they are read; the context of the GPU is that of this thread, which has
        // made a tensor there.
        unsafe {
            let create = transmute::<*mut c_void, Create>(create.expect("the driver is loaded"));
            assert_eq!(create(&mut stream, NON_BLOCKING), 0);
            assert_eq!((functions.use_stream)(stream, 0, &mut guard), 0);
        }
        // It does not wait for the stream on which tensors were made so far.
        Cuda::synchronize(0);
        Self { functions, guard }
    }
}

impl Drop for OwnStream<'_> {
    fn drop(&mut self) {
        // SAFETY: the guard is deleted once. The stream lives as long as the process.
        unsafe { (self.functions.stop_using)(self.guard) };
    }
}

/// A CUDA graph. The room is many times what the object takes.
struct Graph<'a> {
    functions: &'a Functions,
    room: Box<[u128; 1024]>,
}

impl<'a> Graph<'a> {
    /// What `work` launches, which is not executed.
    fn capture<T>(functions: &'a Functions, work: impl FnOnce() -> T) -> (Self, T) {
        const GLOBAL: c_int = 0;
        let mut graph = Self { functions, room: Box::new([0; 1024]) };
        let place = graph.place();
        // SAFETY: the object is made in room of its own, and destroyed once.
        unsafe {
            (functions.make)(place, false);
            (functions.begin)(place, 0, 0, GLOBAL);
            let result = work();
            (functions.end)(place);
            (graph, result)
        }
    }

    fn place(&mut self) -> *mut c_void {
        self.room.as_mut_ptr().cast()
    }

    fn replay(&mut self) {
        // SAFETY: the capture has ended.
        unsafe { (self.functions.replay)(self.place()) };
        Cuda::synchronize(0);
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing of the graph runs any more.
        unsafe { (self.functions.destroy)(self.place()) };
    }
}

/// A loss, and what draws its input and target.
type Step = (&'static str, Compute, fn() -> [Tensor; 2]);
type Compute = Box<dyn Fn(&Tensor, &Tensor) -> Tensor>;

const GPU: (Kind, Device) = (Kind::Float, Device::Cuda(0));

fn reals() -> [Tensor; 2] {
    [Tensor::randn([512, 33], GPU), Tensor::randn([512, 33], GPU)]
}

fn shares() -> [Tensor; 2] {
    [Tensor::rand([512, 33], GPU), Tensor::rand([512, 33], GPU)]
}

fn rows() -> [Tensor; 2] {
    [Tensor::randn([512, 33], GPU), Tensor::randint(33, [512], (Kind::Int64, GPU.1))]
}

fn pixels() -> [Tensor; 2] {
    [Tensor::rand([2, 5, 40, 40], GPU), Tensor::randint(5, [2, 40, 40], (Kind::Int64, GPU.1))]
}

fn steps() -> Vec<Step> {
    fn of(loss: impl Loss + 'static) -> Compute {
        Box::new(move |input, target| loss.forward(input, target))
    }
    vec![
        ("mse", of(MseLoss::new()), reals),
        ("sigmoid focal", of(SigmoidFocalLoss::new()), shares),
        ("bce", of(BceLoss::new()), shares),
        ("cross entropy", of(CrossEntropyLoss::new().label_smoothing(0.1)), rows),
        ("nll", of(NllLoss::new()), rows),
        ("softmax focal", of(SoftmaxFocalLoss::new()), rows),
        ("dice", of(DiceLoss::new()), pixels),
        (
            "cosine",
            Box::new(|input, target| {
                let labels = target.select(1, 0).sign();
                CosineEmbeddingLoss::new().forward(input, target, &labels)
            }),
            reals,
        ),
    ]
}

/// The loss and the gradient of the input.
fn compute(step: &dyn Fn(&Tensor, &Tensor) -> Tensor, input: &Tensor, target: &Tensor) -> [Tensor; 2] {
    let loss = step(input, target);
    let gradient = Tensor::run_backward(&[&loss], &[input], false, false).remove(0);
    [loss.detach(), gradient]
}

fn functions() -> Option<Functions> {
    let functions = Functions::find().filter(|_| Cuda::is_available());
    if functions.is_none() {
        println!("left out: there is no GPU");
    }
    functions
}

#[test]
fn a_replay_gives_the_losses_of_a_call() {
    let Some(functions) = functions() else { return };
    let [first, _] = reals();
    let _own = OwnStream::new(&functions);
    drop(first);
    for (name, step, draw) in steps() {
        let [mut input, mut target] = draw();
        input = input.set_requires_grad(true);
        // Modules are loaded and all memory of the crate is made before the capture.
        for _ in 0..3 {
            let _ = compute(&*step, &input, &target);
        }
        Cuda::synchronize(0);
        let (mut graph, captured) = Graph::capture(&functions, || compute(&*step, &input, &target));
        for _ in 0..3 {
            let others = draw();
            tch::no_grad(|| input.copy_(&others[0]));
            target.copy_(&others[1]);
            graph.replay();
            let expected = compute(&*step, &others[0].detach().set_requires_grad(true), &others[1]);
            for (captured, expected) in captured.iter().zip(&expected) {
                assert!(captured.equal(expected), "{name}: {captured:?} {expected:?}");
            }
        }
    }
    InvalidValues::f_check(GPU.1).unwrap();
}

#[test]
fn a_replay_tells_of_invalid_values() {
    let Some(functions) = functions() else { return };
    let [input, target] = rows();
    let _own = OwnStream::new(&functions);
    let input = input.set_requires_grad(true);
    let step: Compute = Box::new(|input, target| CrossEntropyLoss::new().forward(input, target));
    for _ in 0..3 {
        let _ = compute(&*step, &input, &target);
    }
    InvalidValues::f_check(GPU.1).unwrap();
    let (mut graph, [loss, gradient]) = Graph::capture(&functions, || compute(&*step, &input, &target));
    for _ in 0..2 {
        let _ = target.get(7).fill_(33);
        graph.replay();
        assert!(loss.double_value(&[]).is_nan() && gradient.eq(0.0).all().int64_value(&[]) != 0);
        InvalidValues::f_check(GPU.1).unwrap_err();
        let _ = target.get(7).fill_(3);
        graph.replay();
        assert!(loss.double_value(&[]).is_finite());
        InvalidValues::f_check(GPU.1).expect("it was told once");
    }
}

/// Without a GPU, too: what is called is there under these names.
#[test]
fn libtorch_has_what_is_called() {
    if Functions::find().is_none() {
        println!("left out: this libtorch is one for the CPU alone");
    }
}
