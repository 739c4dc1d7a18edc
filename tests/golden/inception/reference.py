"""What torch-fidelity, pytorch-fid and clean-fid make of the images and weights of `weights.py`.

    python -m venv reference && reference/bin/pip install torch==2.13.0 numpy pillow scipy tqdm
    reference/bin/pip install --no-deps torch-fidelity==0.4.0 pytorch-fid==0.3.0

Both packages import torchvision for things that are not used here (and pytorch-fid for the parent
classes of its blocks, whose layers torch-fidelity defines anew): it is replaced by an empty module.
"""

import importlib
import sys
import types

import numpy as np
import torch
from PIL import Image


class _Absent(types.ModuleType):
    """A module any attribute of which is an empty class or module."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {}) if name[0].isupper() else _absent(name)


def _absent(name):
    return sys.modules.setdefault(name, _Absent(name))


def _stand_in_for_torchvision():
    parts = ("models", "models.inception", "datasets", "transforms", "transforms.functional")
    for name in ("torchvision", *(f"torchvision.{part}" for part in parts)):
        _absent(name).__path__ = []


def network(draw):
    """torch-fidelity's FeatureExtractorInceptionV3 with the given weights; features by name."""
    _stand_in_for_torchvision()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    loaded = torch.load
    names = ["64", "192", "768", "2048", "logits_unbiased"]
    # Weights come from `draw`, so that no file of them is needed.
    original = module.FeatureExtractorInceptionV3.load_state_dict
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, _: None
    torch.load = lambda *_, **__: None
    try:
        model = module.FeatureExtractorInceptionV3("reference", names, "no file")
    finally:
        torch.load = loaded
        module.FeatureExtractorInceptionV3.load_state_dict = original
    state = model.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(draw(name, tuple(value.shape)))
    model.load_state_dict(state)
    return model.eval()


def features(model, pixels):
    """Features of an image uint8 [299, 299, 3], which the network does not resize."""
    spatial = []
    hook = model.Mixed_6d.branch1x1.register_forward_hook(
        lambda *arguments: spatial.append(arguments[2].numpy())
    )
    with torch.no_grad():
        found = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
    hook.remove()
    named = dict(zip(model.features_list, found, strict=True))
    named["logits"] = named.pop("logits_unbiased")
    result = {name: value[0].numpy() for name, value in named.items()}
    # ADM takes the first 7 channels, channels last.
    return result | {"spatial": spatial[0][0, :7].transpose(1, 2, 0).ravel()}


def resized(pixels):
    """The image at 299 x 299 by each preset, float32 [299, 299, 3]."""
    tf1 = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
    bilinear = tf1.interpolate_bilinear_2d_like_tensorflow1x(
        x, size=(299, 299), align_corners=False
    )
    # pytorch-fid, inception.py; clean-fid, resize.py.
    torch_bilinear = torch.nn.functional.interpolate(
        x, size=(299, 299), mode="bilinear", align_corners=False
    )
    clean = [
        np.asarray(
            Image.fromarray(pixels[..., c].astype(np.float32)).resize(
                (299, 299), Image.Resampling.BICUBIC
            )
        ).clip(0, 255)
        for c in range(3)
    ]
    return {
        "tf1": bilinear[0].numpy().transpose(1, 2, 0),
        "torch": torch_bilinear[0].numpy().transpose(1, 2, 0),
        "clean": np.stack(clean, axis=-1),
    }


def metrics(generated, references, logits):
    """torch-fidelity's and pytorch-fid's numbers of features [n, d] and logits, as floats."""
    _stand_in_for_torchvision()
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity import metric_isc, metric_kid, metric_prc

    ours, theirs = torch.from_numpy(generated), torch.from_numpy(references)
    kid = metric_kid.kid_features_to_metric(
        ours, theirs, kid_subsets=1, kid_subset_size=len(ours), verbose=False
    )
    prc = metric_prc.prc_features_to_metric(ours, theirs, verbose=False)
    doubled = [x.astype(np.float64) for x in (generated, references)]
    moments = [part for x in doubled for part in (x.mean(0), np.cov(x, rowvar=False))]
    return {
        "fid": float(calculate_frechet_distance(*moments)),
        "kid": kid["kernel_inception_distance_mean"],
        "inception_score": metric_isc.isc_features_to_metric(torch.from_numpy(logits))[
            "inception_score_mean"
        ],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }
