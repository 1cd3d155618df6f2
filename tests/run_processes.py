"""What `torchrun` starts in the tests of several processes: `python run_processes.py WHAT …`."""

import json
import os
import signal
import sys
from pathlib import Path

from vnet_fast.training import trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from vnet_fast import DiceLoss, command_line, train
from vnet_fast.distributed import Processes


def train_until_one_dies(*arguments):
    """The second process is killed in its sixth iteration."""
    update = trainer.Trainer._update

    def dying(run, source):
        if run.processes.rank == 1 and run.iteration == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(run, source)

    trainer.Trainer._update = dying
    command_line.run(train.main, command_line.parser_of(train.Config, "vnet_fast.train"), list(arguments))


def batch_dice(folder):
    """Loss and averaged gradient of a convolution, of volumes shared out."""
    processes = Processes()
    processes.start(torch.device("cpu"))
    image, target = batch(2 * processes.count)
    model = processes.wrap(convolution())
    mine = slice(2 * processes.rank, 2 * processes.rank + 2)
    results = {}
    for together in (True, False):
        model.zero_grad()
        loss = DiceLoss(softmax=True, to_onehot_y=True, batch=together)(model(image[mine]), target[mine])
        loss.backward()
        losses = processes.gathered(loss.item())
        results[str(together)] = [sum(losses) / len(losses), model.module.weight.grad.flatten().tolist()]
    norm = torch.nn.BatchNorm3d(2)
    norm.running_mean.fill_(processes.rank)
    processes.share_buffers(norm)
    results["running means"] = processes.gathered(norm.running_mean.tolist())
    del model, loss
    processes.end()
    results["threads"] = [name for name in _threads() if "gloo" in name]
    if processes.is_first:
        Path(folder, "result.json").write_text(json.dumps(results))


def train_and_count_threads(*arguments):
    """Trains, and writes the names of the threads that are left beside the run."""
    end = trainer.Processes.end

    def counted(processes, failed=False):
        end(processes, failed)
        print(f"threads: {' '.join(_threads())}", file=sys.stderr)

    trainer.Processes.end = counted
    command_line.run(train.main, command_line.parser_of(train.Config, "vnet_fast.train"), list(arguments))


def _threads():
    """The names of this process's threads, on Linux."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def convolution():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 1, bias=False)


def batch(n):
    image = torch.randn(n, 1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    # volumes of unlike foreground, for which sums over all are another thing than the mean of each
    return image, (image > torch.linspace(-1, 2, n)[:, None, None, None, None]).to(torch.uint8)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
