"""Every configuration key once, with its meaning, unit and default."""

from yacs.config import CfgNode


def defaults() -> CfgNode:
    """A fresh, unfrozen node."""
    c = CfgNode()
    c.OUTPUT_DIR = "output"  # runs go to OUTPUT_DIR/<dataset>/<config stem>/
    c.GPUS = ()  # CUDA device numbers, one process each; () is GPU 0 if there is one, else the CPU
    c.WORKERS = 4  # loader processes per training process (on the CPU fewer); 0 loads in it
    c.SEED = 304  # of weights, shuffling and augmentation; --seed replaces it
    c.CUDNN_BENCHMARK = True  # let cuDNN time its algorithms; False with CUDNN_DETERMINISTIC
    c.CUDNN_DETERMINISTIC = False  # only deterministic kernels (slower)
    c.TF32 = True  # float32 convolutions and products may run as TF32 on the GPU
    c.DATASET = _dataset()
    c.MODEL = _model()
    c.LOSS = _loss()
    c.TRAIN = _train()
    c.TEST = _test()
    return c


def _dataset() -> CfgNode:
    c = CfgNode()
    c.DATASET = "cityscapes"  # a name of datasets.list_datasets(), or a .yaml file
    c.ROOT = "data/"  # holds <dataset>/ and list/<dataset>/
    c.TRAIN_SET = "list/cityscapes/train.lst"  # relative to ROOT; synthetic: "first:last"
    c.TEST_SET = "list/cityscapes/val.lst"  # evaluated; synthetic: "first:last"
    c.LABELS = ""  # how label files spell classes; "" is the dataset's published encoding
    c.SIZE = (480, 360)  # synthetic only: width, height of the drawn scenes
    c.CACHE = "none"  # decoded training images kept: none | ram | disk
    c.CACHE_GB = 16.0  # its limit and that of AUGMENT_ON device, 10^9 bytes (ram: each GPU)
    c.CACHE_DIR = ""  # folder of CACHE disk, outlives the run; "" is OUTPUT_DIR/cache
    c.ON_ERROR = "stop"  # bad training image or label: stop | skip (take another, count it)
    c.REPEATED_LINES = False  # lines of TRAIN_SET may stand there several times
    # none (or False) | published (or True): the dataset's, where it states any | enet:
    # 1 / ln(1.1 + share of the class in the labels of TRAIN_SET), 1 on the average of their pixels
    c.CLASS_WEIGHTS = "published"
    return c


def _model() -> CfgNode:
    c = CfgNode()
    c.NAME = "rtlinearformer_base"  # a name of models.list_models()
    c.OPTIONS = CfgNode(new_allowed=True)  # constructor options that differ from the name's
    c.PRETRAINED = ""  # weights to start from; "" is random initialisation
    c.RESET = ()  # submodules that PRETRAINED need not fill, such as ("head", "aux_head")
    return c


def _loss() -> CfgNode:
    c = CfgNode()
    c.NAME = "ce"  # of the main head: ce | ohem
    c.OHEM_THRESHOLD = 0.9  # pixels whose true class is likelier than this are easy
    c.OHEM_MIN_KEPT = 131072  # hard pixels kept at least, per process and step
    c.AUX_WEIGHTS = ()  # of each auxiliary head; () is 0.4 for every one
    c.AUX_NAME = "ce"  # of the auxiliary heads: ce | ohem
    c.AUX_OVER_ALL_PIXELS = False  # PIDNet: auxiliary mean over ignored pixels too
    c.BOUNDARY_WEIGHT = 20.0  # of the boundary head, for networks that have one
    c.BOUNDARY_AWARE_WEIGHT = 1.0  # of the main loss on predicted boundaries (PIDNet, eq. 2)
    c.DICE = 0.0  # weight of the soft Dice loss of the main head beside NAME; 0 is off
    c.LOVASZ = 0.0  # weight of the Lovasz-softmax loss of the main head; 0 is off
    c.LABEL_SMOOTHING = 0.0  # share of ce's and ohem's target that is spread over all classes
    return c


def _train() -> CfgNode:
    c = CfgNode()
    c.IMAGE_SIZE = (1024, 1024)  # crop: width, height in pixels
    c.BATCH_SIZE_PER_GPU = 6  # crops per process and forward pass
    c.ACCUMULATE = 1  # forward passes per optimiser step
    c.END_EPOCH = 484  # epochs in all, where neither STEPS nor MINUTES decides
    c.STEPS = 0  # optimiser steps in all; 0 leaves it to END_EPOCH
    c.MINUTES = 0.0  # minutes of training in all, scoring not counted; 0 leaves it to the others
    c.RESUME = False  # continue from last.pt of the run folder if it is there
    c.OPTIMIZER = "sgd"  # sgd | adamw
    c.LR = 0.01  # learning rate after warm-up
    c.END_LR = 0.0  # learning rate at the end
    c.SCHEDULE = "poly"  # decay of the learning rate: poly | cosine
    c.POWER = 0.9  # of the polynomial decay
    c.WARMUP_STEPS = 0  # optimiser steps of linear warm-up; not with MINUTES
    c.WARMUP = 0.0  # the same as a share (0..1) of the run, where WARMUP_STEPS is 0
    c.WARMUP_LR = 1e-6  # learning rate at step 0 of the warm-up
    c.CALM = 0.0  # last share (0..1) of the run that crops at scale 1 and flips, and does no more
    c.MOMENTUM = 0.9  # sgd only
    c.WD = 0.0005  # weight decay
    c.WD_ON_NORM = True  # weight decay on biases and norm parameters too
    c.CLIP_GRAD = 0.0  # largest gradient norm; 0 does not clip
    c.PRECISION = "auto"  # auto | fp32 | bf16 | fp16; auto is bf16 where it is fast
    c.EMA = 0.999  # decay of the weights' average, which is scored and kept; 0 is off
    c.CAPTURE = "auto"  # auto | on | off: record the step as a CUDA graph and replay it
    c.CHANNELS_LAST = True  # NHWC memory format
    c.SYNC_BN = True  # batch statistics over all processes
    c.SAVE_EVERY = 0  # steps between checkpoints; 0 makes them after every epoch
    c.LOG_EVERY = 10  # steps between looks at what the device has computed
    c.EVAL_AS_TEST = False  # score with TEST.FLIP_TEST and TEST.SCALES during training too
    c.EVAL_EVERY = 1  # epochs between evaluations; the last epoch is always evaluated
    c.AUGMENT_ON = "cpu"  # cpu: in loader processes | device: whole batches where it trains
    c.BASE_SIZE = 0  # pixels of the long side at scale 1; 0 is each image's own
    c.SHORT_SIDE = 0  # pixels of the short side at scale 1, BASE_SIZE bounding the long one
    c.SCALE_RANGE = (0.5, 2.0)  # random scaling, factor of the image size
    c.SCALE_STEP = 0.0  # 0 draws the factor continuously, else from this grid
    c.SCALE_LOG = False  # draw the factor evenly in its logarithm; needs SCALE_STEP 0
    c.CAT_MAX_RATIO = 1.0  # largest share of one class in a crop, else up to 10 others are drawn
    c.FLIP = "random"  # mirror crops: none (or False) | random (or True) | alternate (each image
    # in every other epoch)
    c.COLOR = "none"  # brightness, contrast, saturation and hue at random: none (or False) | jitter
    # (or True; RTFormer) | photometric (mmsegmentation)
    c.CUTMIX = 0.0  # probability that a batch's crops take a rectangle, rare classes preferred
    c.PAD_VALUE = 0.0  # grey level (0..255) that fills a crop beyond the image
    return c


def _test() -> CfgNode:
    c = CfgNode()
    c.MODEL_FILE = ""  # weights to evaluate; "" is best.pt of the run folder
    c.BATCH_SIZE_PER_GPU = 1  # images per forward pass
    c.PRECISION = "fp32"  # auto | fp32 | bf16 | fp16; auto is bf16 where it is fast
    # torch (a CUDA graph on a GPU, else eager) | eager | graph | compiled | onnxruntime | openvino;
    # the last three prepare for every image size anew
    c.RUNTIME = "torch"
    c.SHORT_SIDE = 0  # pixels that the short side is scaled to, ratio kept; 0 leaves it
    c.LONG_SIDE = 0  # the long side is scaled to at most this; 0 has no bound
    c.SIZE_DIVISOR = 1  # scaled sides are stretched up to a multiple of this
    c.FLIP_TEST = False  # average with the mirrored image
    c.SCALES = (1.0,)  # average over these image scales
    c.SLIDE = ()  # (width, height) of a sliding window; () is the whole image
    c.STRIDE = ()  # (width, height) between windows; () is two thirds of the window
    c.PAD = False  # pad images to the size that the network can take
    c.BOUNDARY = False  # also the F1 score of outlines, within 0.75 % of the image's diagonal
    c.PER = "none"  # also scores of parts of the list: none | folder | prefix (before the first _)
    # pictures (image, truth, prediction, errors) written by an evaluation; 0 draws no matrix either
    c.OVERLAYS = 4
    c.SUBMISSION = False  # write label images in the test server's ids
    return c
