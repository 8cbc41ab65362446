import dataclasses
import itertools
import math
import typing

import pytest
import torch

from loupe_ext import train as package
from loupe_ext.data import Batch, Grounded, Pairs
from loupe_ext.train import Config, Progress, Task, checkpoint, loop, train
from loupe_ext.train.loop import batch_indices, learning_rate
from tests.training import SMALL, UNSIL, assert_identical, interrupt_at, scenes, trained, uninterrupted


class TestReproducible:
    def test_the_same_run_twice(self):
        assert_identical(uninterrupted(), trained())

    def test_the_callers_random_numbers_do_not_matter_and_are_left_alone(self):
        torch.manual_seed(5)
        want = torch.rand(3)
        torch.manual_seed(5)
        assert_identical(uninterrupted(), trained())
        assert torch.equal(torch.rand(3), want)

    def test_another_seed_starts_elsewhere(self):
        one, other = (trained(SMALL.but(steps=1, seed=seed)).task.state_dict() for seed in (0, 1))
        assert not torch.equal(one["encoder.text.embed.weight"], other["encoder.text.embed.weight"])

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (3, 3), (6, 6)])
    def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(self, save_every, stop, tmp_path):
        path = tmp_path / "run" / "model.safetensors"
        with pytest.raises(KeyboardInterrupt):
            trained(path=path, save_every=save_every, report=interrupt_at(stop))
        assert checkpoint.load(path).step == stop // save_every * save_every
        assert_identical(uninterrupted(), trained(path=path))
        assert checkpoint.load(path).step == SMALL.steps

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (6, 6)])
    def test_so_does_one_with_a_learner_that_predicts_before_and_after(self, save_every, stop, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(KeyboardInterrupt):
            trained(UNSIL, path=path, save_every=save_every, report=interrupt_at(stop))
        whole, parts = trained(UNSIL), trained(UNSIL, path=path)
        assert whole.history["fsa_unsil_computed"].tolist() == [1.0] + 6 * [1 / 8]
        assert_identical(whole, parts)

    def test_so_does_one_whose_parameters_did_not_all_learn_before(self, tmp_path):
        config = SMALL.but(boxes=0.0, learn_scale=False, steps=3)  # no gradient comes to the region head
        with pytest.raises(KeyboardInterrupt):
            trained(config, path=tmp_path / "model", save_every=1, report=interrupt_at(1))
        assert_identical(trained(config), trained(config, path=tmp_path / "model"))

    def test_a_finished_run_is_read_and_not_repeated(self, tmp_path):
        trained(path=tmp_path / "model")
        steps: list[Progress] = []
        assert_identical(uninterrupted(), trained(path=tmp_path / "model", report=steps.append))
        assert steps == []

    def test_an_interruption_before_the_first_checkpoint_leaves_none(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            trained(path=tmp_path / "model", save_every=3, report=interrupt_at(2))
        assert list(tmp_path.iterdir()) == []


class TestDevice:
    @pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "x" * 1000])
    def test_one_that_is_not_there(self, device, tmp_path):
        with pytest.raises(ValueError, match=f"device: expected one that torch has here, got '{device[:9]}"):
            trained(device=device, path=tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_run_on_cuda_resumes_and_learns_as_on_the_cpu(self, tmp_path):
        pytest.importorskip("scipy")
        config = SMALL.but(tsa=1.0, tsa_source="unsil", fsa_source="unsil")
        on_cpu, on_cuda = trained(config), trained(config, device="cuda")
        for name, losses in on_cpu.history.items():
            torch.testing.assert_close(on_cuda.history[name][:1], losses[:1], rtol=1e-3, atol=1e-4, msg=name)
        assert {x.device.type for x in on_cuda.task.state_dict().values()} == {"cuda"}
        pytest.importorskip("safetensors")
        with pytest.raises(KeyboardInterrupt):
            trained(config, device="cuda", path=tmp_path / "model", save_every=3, report=interrupt_at(4))
        resumed = trained(config, device="cuda", path=tmp_path / "model")
        torch.testing.assert_close(resumed.history["loss"], on_cuda.history["loss"], rtol=1e-3, atol=1e-3)


class TestNoBoxes:
    def test_nothing_that_training_takes_has_a_place_for_one(self):
        fields = {field.name for kind in (Batch, Pairs) for field in dataclasses.fields(kind)}
        assert fields == {"images", "words", "spans", "phrase_lengths", "vocabulary"}
        assert typing.get_type_hints(train)["pairs"] is Pairs
        assert typing.get_type_hints(Task.forward)["batch"] is Batch
        for module in (package, loop, package.task, package.checkpoint, package.config):
            assert Grounded not in vars(module).values()

    @pytest.mark.parametrize("rubbish", [math.nan, 1e9])
    def test_other_true_boxes_give_the_same_weights(self, rubbish):
        true = scenes()
        boxes, objects = (torch.full_like(x, rubbish) for x in (true.boxes, true.objects))
        spoilt = dataclasses.replace(true, boxes=boxes, objects=objects, classes=torch.full_like(true.classes, -1))
        assert_identical(uninterrupted(), train(spoilt.pairs, SMALL))

    def test_scenes_with_boxes_are_refused(self):
        with pytest.raises(TypeError, match="pairs: expected Pairs, got Grounded"):
            train(scenes(), SMALL)


class TestLoop:
    def test_an_epoch_shows_each_pair_once(self):
        epochs = [torch.cat([batch_indices(3 * e + k, 12, 4, 0) for k in range(3)]) for e in range(3)]
        assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
        assert not any(torch.equal(x, y) for x, y in itertools.combinations(epochs, 2))

    def test_an_epoch_leaves_out_what_fills_no_batch(self):
        seen = torch.cat([batch_indices(k, 11, 4, 0) for k in range(2)])
        assert len(seen.unique()) == 8
        assert seen.max() < 11

    def test_batches_depend_on_nothing_but_their_arguments(self):
        want = batch_indices(7, 20, 4, 3)
        torch.manual_seed(9)
        assert torch.equal(batch_indices(7, 20, 4, 3), want)
        assert not torch.equal(batch_indices(7, 20, 4, 4), want)

    def test_the_learning_rate_warms_up_and_falls_to_zero(self):
        config = Config(lr=0.5, warmup=10, steps=100)
        rates = [learning_rate(step, config) for step in range(101)]
        assert rates[0] == pytest.approx(0.05)
        assert rates[:10] == sorted(rates[:10])
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert rates[50] == pytest.approx(0.25)
        assert rates[99] > 0
        assert rates[100] == pytest.approx(0, abs=1e-15)
        assert learning_rate(0, config.but(warmup=0)) == 0.5

    def test_progress_counts_steps_and_names_losses(self):
        seen: list[Progress] = []
        history = trained(SMALL.but(steps=3), report=seen.append).history
        assert [x.step for x in seen] == [1, 2, 3]
        assert {x.steps for x in seen} == {3}
        assert seen[-1].seconds_left == 0
        names = {"loss", "cmc", "late_interaction", "region_phrase", "fsa", "boxes"}
        assert set(seen[0].losses) == set(history) == names
        assert all(history[name][1].item() == pytest.approx(seen[1].losses[name]) for name in names)

    def test_steps_reduce_the_loss(self):
        history = trained(SMALL.but(steps=100, lr=1e-2, warmup=5)).history
        for name in ("cmc", "region_phrase", "late_interaction"):
            assert history[name][-5:].mean() < 0.8 * history[name][:5].mean()

    def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(self, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
            trained(SMALL.but(lr=1e37, warmup=0), path=path)
        assert not path.exists()

    def test_too_few_pairs(self):
        few = Pairs(**vars(scenes().pairs.batch(slice(7))), vocabulary=scenes().pairs.vocabulary)
        with pytest.raises(ValueError, match="pairs: expected at least a batch of 8, got 7"):
            train(few, SMALL)


class TestTask:
    batch = staticmethod(lambda: scenes().pairs.batch(slice(8)))

    def test_the_gate_opens_as_contrast_is_learned(self):
        chance = math.log(8)
        gates = [Task._gate([torch.tensor(chance * share)], 8) for share in (1.5, 1, 0.75, 0.5, 0)]
        assert gates == pytest.approx([0, 0, 1 / 16, 1 / 4, 1], abs=1e-6)
        assert Task._gate([torch.tensor(0.0), torch.tensor(chance)], 8) == pytest.approx(1 / 4)
        assert Task._gate([], 8) == Task._gate([torch.tensor(0.0)], 1) == 1  # nothing to wait for

    def test_a_model_that_tells_nothing_apart_does_not_label_for_itself(self):
        task = Task(SMALL, len(scenes().pairs.vocabulary))
        for projection in (task.encoder.image_projection, task.encoder.text_projection):
            torch.nn.init.zeros_(projection.weight)  # what is left is the bias, the same for all
        losses = task(self.batch(), 0)
        contrast = losses["cmc"] + 0.5 * losses["late_interaction"] + losses["region_phrase"]
        assert losses["loss"].item() == pytest.approx(contrast.item(), rel=1e-6)
        losses["loss"].backward()
        assert task.encoder.region_head.project.weight.grad.abs().max() < 1e-9

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        config = SMALL.but(cmc=2.0, region_phrase=0.0, late_interaction=0.0, fsa=3.0, boxes=0.0)
        losses = Task(config, len(scenes().pairs.vocabulary))(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "fsa"}
        gate = Task._gate([losses["cmc"]], 8)
        assert losses["loss"].item() == pytest.approx((2 * losses["cmc"] + 3 * gate * losses["fsa"]).item())

    def test_sparse_grouping_adds_its_weighted_share(self):
        config = SMALL.but(late_interaction=0.0, region_phrase=0.0, sparse_grouping=3.0, fsa=0.0, boxes=0.0)
        losses = Task(config, len(scenes().pairs.vocabulary))(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "sparse_grouping"}
        assert losses["loss"].item() == pytest.approx((losses["cmc"] + 3 * losses["sparse_grouping"]).item())

    def test_temperatures_are_learned_or_fixed(self):
        learned, fixed = (trained(SMALL.but(learn_scale=x, scale=20.0)).task for x in (True, False))
        for name in ("scale_global", "scale_local"):
            assert getattr(learned, name)().item() != pytest.approx(20, rel=1e-4)
            assert getattr(fixed, name)().item() == pytest.approx(20, rel=1e-6)

    def test_temperatures_leave_their_cap(self):
        config = SMALL.but(scale=60.0, scale_cap=60.0, weight_decay=0.0, steps=4)
        local = trained(config).task.scale_local
        assert 1 < local().item() < 59.9
        fixed = trained(config.but(learn_scale=False, steps=1)).task.scale_local
        assert fixed().item() == 60

    @pytest.mark.parametrize("source", ["exact", "sampled", "unsil"])
    def test_the_sources_of_fsa(self, source):
        task = Task(SMALL.but(fsa_source=source, boxes=0.0, fsa_coalitions=2), len(scenes().pairs.vocabulary))
        reference = Task(SMALL.but(boxes=0.0), len(scenes().pairs.vocabulary))
        reference.load_state_dict(task.state_dict(), strict=False)
        got, exact = task(self.batch(), 3), reference(self.batch(), 3)
        assert (got["fsa"] == exact["fsa"]) == (source == "exact")
        assert torch.equal(got["region_phrase"], exact["region_phrase"])
        again, later = task(self.batch(), 3), task(self.batch(), 4)
        assert torch.equal(again["fsa"], got["fsa"])
        assert torch.equal(later["fsa"], got["fsa"]) == (source == "exact")

    def test_the_interaction_learners_and_the_model_learn_apart(self):
        config = SMALL.but(tsa=1.0, tsa_source="unsil", fsa_source="unsil", fsa_coalitions=4, clip=1e-3)
        task = Task(config, len(scenes().pairs.vocabulary))
        losses = task(self.batch(), 0)
        metrics = {name for name in losses if "_unsil" in name}
        kinds = ("", "_computed", "_error", "_within_1", "_calibration_error")
        assert metrics >= {f"{name}_unsil{kind}" for name in ("fsa", "tsa") for kind in kinds}
        assert not any(losses[name].requires_grad for name in metrics)
        gate = Task._gate([losses[name] for name in ("cmc", "late_interaction", "region_phrase")], 8)
        weights = {"cmc": 1, "late_interaction": 0.5, "region_phrase": 1, "fsa": gate, "tsa": gate, "boxes": 2 * gate}
        weights |= {"fsa_unsil": 1, "tsa_unsil": 1}
        assert losses["loss"].item() == pytest.approx(sum(w * losses[name].item() for name, w in weights.items()))
        without = Task(config.but(fsa_source="sampled", tsa_source="computed"), len(scenes().pairs.vocabulary))
        without.load_state_dict(task.state_dict(), strict=False)
        losses["loss"].backward()
        without(self.batch(), 0)["loss"].backward()
        for name, value in without.named_parameters():
            assert torch.equal(value.grad, task.get_parameter(name).grad), name
        model, *learners = task.parts()
        assert {id(x) for part in task.parts() for x in part} == {id(x) for x in task.parameters()}
        assert len(model) == len(list(without.parameters()))
        assert all(part and all(x.grad is not None for x in part) for part in learners)

    def test_the_learner_learns_from_what_it_is_told_to(self):
        computed = {}
        for targets in ("sampled", "exact"):
            task = Task(SMALL.but(fsa_source="unsil", unsil_targets=targets, fsa_coalitions=2), 99)
            other = Task(SMALL, 99)
            other.load_state_dict(task.state_dict(), strict=False)
            computed[targets] = torch.equal(task(self.batch(), 0)["fsa"], other(self.batch(), 0)["fsa"])
        assert computed == {"sampled": False, "exact": True}

    def test_boxes_learn_from_heat_and_heat_does_not_learn_from_boxes(self):
        task = Task(SMALL, len(scenes().pairs.vocabulary))
        task(self.batch(), 0)["boxes"].backward()
        assert task.encoder.region_head.project.weight.grad.abs().max() > 0
        for module in (task.encoder.text, task.encoder.image_projection, task.encoder.text_projection):
            assert all(x.grad is None for x in module.parameters())
