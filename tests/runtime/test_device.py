import pytest
import torch
from conftest import call_script

from autoencoders.runtime import processes
from autoencoders.runtime.device import Precision, pick_device, seed_for
from autoencoders.runtime.errors import UsageError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU here")
CPU = torch.device("cpu")


@no_cuda
@no_mps
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert pick_device("auto") == CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_auto_is_cuda_where_there_is_one_and_an_index_picks_it():
    assert pick_device("auto").type == "cuda" and pick_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["tpu", "", "CPU", "gpu", "cuda:x", "cuda:-1", "cuda:99", "cuda:²", "cpu:", "auto:1"])
def test_a_device_that_cannot_be_is_a_mistake_that_repeats_it(name):
    with pytest.raises(UsageError) as caught:
        pick_device(name)
    assert f"--device {name}" in str(caught.value)


@pytest.mark.parametrize("name", [pytest.param("cuda", marks=no_cuda), pytest.param("mps", marks=no_mps)])
def test_a_missing_device_is_a_mistake_and_never_a_quietly_slower_run(name):
    with pytest.raises(UsageError, match="--device auto or cpu"):
        pick_device(name)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_cpu_computes_in_fp32_unless_asked(mode):
    precision = Precision(mode, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert str(precision) == "float32" and not precision.scaler.is_enabled()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decide", [lambda: Precision("off", CPU), lambda: pick_device("cpu")])
def test_fp32_is_never_tf32_and_cudnn_is_deterministic(decide, monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    decide()
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 is False  # reading it is an error where it contradicts the new switch


def test_mixed_precision_on_a_cpu_is_bf16_without_scaling():
    precision = Precision("on", CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert str(precision) == "bfloat16" and not precision.scaler.is_enabled()


def test_denormal_numbers_are_zero_in_a_script_but_not_in_a_program_that_imports_us(capsys):
    def smallest(*_):
        pick_device("cpu")
        print("zero" if torch.tensor(1e-30) * 1e-10 == 0 else "denormal")

    smallest()
    assert capsys.readouterr().out == "denormal\n"
    assert call_script(capsys, smallest) == (0, "zero\n", "")


def test_an_update_is_the_optimisers_own_step():
    ours, plain = (torch.nn.Parameter(torch.tensor([3.0])) for _ in range(2))
    precision = Precision("off", CPU)
    precision.backward(ours.square().sum())
    precision.update(torch.optim.SGD([ours], lr=0.1))
    plain.square().sum().backward()
    torch.optim.SGD([plain], lr=0.1).step()
    assert torch.equal(ours, plain) and ours.item() == pytest.approx(2.4)


def test_seeds_of_different_places_differ_and_repeat():
    seeds = [seed_for(s, *path) for s in range(20) for e in range(20) for path in ((e,), (e, 1))]
    assert len(set(seeds)) == len(seeds)
    assert seed_for(3, 4) == seed_for(3, 4)
    torch.manual_seed(max(seeds))  # 64 bits are what torch takes


def test_more_processes_than_gpus_are_told_so_whatever_device_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(processes, "_size", 2)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for device in ("auto", "cuda"):
        with pytest.raises(UsageError, match="more processes than this machine's 1 CUDA devices"):
            pick_device(device)


@pytest.mark.parametrize("name", ["cpu:00", "cpu:01", "cuda:007"])
def test_a_device_number_has_no_leading_zeros(name):
    with pytest.raises(UsageError, match="expected auto"):
        pick_device(name)
