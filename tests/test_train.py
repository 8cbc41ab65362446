import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from typing import get_type_hints

import pytest
import torch
from loupe_experiments.ablation import ROWS

from loupe_ext import objective
from loupe_ext import train as package
from loupe_ext.data import Batch, Grounded, Pairs
from loupe_ext.losses import contrast_gate
from loupe_ext.objective import Objective
from loupe_ext.train import Config, OptimConfig, Progress, build, checkpoint, fit, loop, train
from loupe_ext.train.loop import learning_rate
from loupe_ext.train.step import Step
from tests.training import SMALL, UNSIL, assert_identical, interrupt_at, scenes, trained, uninterrupted


def fields_of(part: slice) -> dict[str, torch.Tensor]:
    batch = scenes().pairs.batch(part)
    return {name: getattr(batch, name) for name in ("images", "tokens", "spans", "phrase_lengths")}


NO_REGIONS = {"region_phrase": 0.0, "proposal_phrase": 0.0, "boxes": 0.0}


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
        one, other = (trained(SMALL.but(steps=1, seed=seed)).model.state_dict() for seed in (0, 1))
        assert not torch.equal(one["text.embed.weight"], other["text.embed.weight"])

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (3, 3), (6, 6)])
    def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(self, save_every, stop, tmp_path):
        path = tmp_path / "folder" / "run"
        with pytest.raises(KeyboardInterrupt):
            trained(path=path, save_every=save_every, report=interrupt_at(stop))
        assert checkpoint.load(path).step == stop // save_every * save_every
        assert_identical(uninterrupted(), trained(path=path))
        assert checkpoint.load(path).step == SMALL.optim.steps

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (6, 6)])
    def test_so_does_one_with_a_learner_that_predicts_before_and_after(self, save_every, stop, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(KeyboardInterrupt):
            trained(UNSIL, path=path, save_every=save_every, report=interrupt_at(stop))
        whole, parts = trained(UNSIL), trained(UNSIL, path=path)
        assert whole.history["fsa_unsil_computed"].tolist() == [1.0] + 6 * [1 / 8]
        assert_identical(whole, parts)

    def test_so_does_one_whose_parameters_did_not_all_learn_before(self, tmp_path):
        config = SMALL.but(boxes=0.0, learn_logit_scale=False, steps=3)  # no gradient comes to the region head
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
        assert [path.name for path in tmp_path.rglob("*.*")] == ["metrics.jsonl"]


class TestDevice:
    @pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "x" * 1000])
    def test_one_that_is_not_there(self, device, tmp_path):
        with pytest.raises(ValueError, match=f"device: expected one that torch has here, got '{device[:9]}"):
            trained(device=device, path=tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_run_on_cuda_resumes_and_learns_as_on_the_cpu(self, tmp_path):
        pytest.importorskip("scipy")
        config = SMALL.but({"tsa.source": "unsil", "fsa.source": "unsil"}, tsa=1.0)
        on_cpu, on_cuda = trained(config), trained(config, device="cuda")
        for name, losses in on_cpu.history.items():
            torch.testing.assert_close(on_cuda.history[name][:1], losses[:1], rtol=1e-3, atol=1e-4, msg=name)
        assert {x.device.type for x in on_cuda.model.state_dict().values()} == {"cuda"}
        pytest.importorskip("safetensors")
        with pytest.raises(KeyboardInterrupt):
            trained(config, device="cuda", path=tmp_path / "model", save_every=3, report=interrupt_at(4))
        resumed = trained(config, device="cuda", path=tmp_path / "model")
        torch.testing.assert_close(resumed.history["loss"], on_cuda.history["loss"], rtol=1e-3, atol=1e-3)


class TestNoBoxes:
    def test_nothing_that_training_takes_has_a_place_for_one(self):
        fields = {field.name for kind in (Batch, Pairs) for field in dataclasses.fields(kind)}
        options = {"image_options", "text_options"}  # inputs of the model's encoders
        assert fields == {"images", "tokens", "spans", "phrase_lengths", "vocabulary", "characters", *options}
        assert get_type_hints(fit)["pairs"] is Pairs
        assert get_type_hints(train)["batches"] == Iterable[Batch]
        assert get_type_hints(Step.forward)["batch"] is Batch
        for module in (package, loop, package.step, package.checkpoint, package.config, objective.terms):
            assert Grounded not in vars(module).values()

    @pytest.mark.parametrize("rubbish", [math.nan, 1e9])
    def test_other_true_boxes_give_the_same_weights(self, rubbish):
        true = scenes()
        boxes, objects = (torch.full_like(x, rubbish) for x in (true.boxes, true.objects))
        spoilt = dataclasses.replace(true, boxes=boxes, objects=objects, classes=torch.full_like(true.classes, -1))
        assert_identical(uninterrupted(), fit(spoilt.pairs, SMALL, log_every=1))

    def test_scenes_with_boxes_are_refused(self):
        with pytest.raises(TypeError, match="pairs: expected Pairs, got Grounded"):
            fit(scenes(), SMALL)


class TestLoop:
    @staticmethod
    def indices(step, n, batch_size, seed=0, rank=0, world_size=1):
        few = Pairs(**fields_of(slice(n)), vocabulary=scenes().pairs.vocabulary)
        return few.batches(batch_size, seed, rank, world_size).indices(step)

    def test_an_epoch_shows_each_pair_once(self):
        epochs = [torch.cat([self.indices(3 * e + k, 12, 4) for k in range(3)]) for e in range(3)]
        assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
        assert not any(torch.equal(x, y) for x, y in itertools.combinations(epochs, 2))

    def test_an_epoch_leaves_out_what_fills_no_batch(self):
        seen = torch.cat([self.indices(k, 11, 4) for k in range(2)])
        assert len(seen.unique()) == 8
        assert seen.max() < 11

    def test_batches_depend_on_nothing_but_their_arguments(self):
        want = self.indices(7, 20, 4, 3)
        torch.manual_seed(9)
        assert torch.equal(self.indices(7, 20, 4, 3), want)
        assert not torch.equal(self.indices(7, 20, 4, 4), want)

    def test_processes_share_a_batch(self):
        parts = [self.indices(7, 20, 4, 3, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat(parts), self.indices(7, 20, 4, 3))

    def test_batches_go_on_from_their_state(self):
        batches, again = scenes().pairs.batches(8), scenes().pairs.batches(8)
        seen = [batch.tokens for batch in itertools.islice(batches, 7)]
        again.load_state_dict({"step": 4})
        assert torch.equal(next(iter(again)).tokens, seen[4])
        assert batches.state_dict() == {"step": 7}

    def test_any_iterable_of_batches_will_do(self, tmp_path):
        """A list of two batches, resumed where it was, as `Pairs.batches` of the same order."""
        pairs = scenes().pairs
        batches = [pairs.batch(slice(start, start + 8)) for start in (0, 8)]

        def run(**options):
            return train(*build(SMALL, pairs.vocabulary), batches, SMALL.optim, log_every=1, **options)

        whole = run()
        with pytest.raises(KeyboardInterrupt):
            run(path=tmp_path / "run", save_every=1, report=interrupt_at(3))
        assert_identical(whole, run(path=tmp_path / "run"))
        for wrong, error in (([], ValueError), ([1], TypeError), (3, TypeError)):
            with pytest.raises(error, match="batches: expected"):
                train(*build(SMALL, pairs.vocabulary), wrong, SMALL.optim)

    def test_gradients_of_batches_add_up(self):
        """The mean of two batches' gradients: of the same batch twice, that of one."""
        batch = scenes().pairs.batch(slice(8))
        config = SMALL.but(steps=1)
        one, two = (
            train(*build(config, scenes().pairs.vocabulary), [batch], config.but(accumulate=n).optim) for n in (1, 2)
        )
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(two.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)

    def test_a_moving_average_is_kept_and_resumed(self, tmp_path):
        config = SMALL.but(ema=0.5)
        whole = trained(config)
        with pytest.raises(KeyboardInterrupt):
            trained(config, path=tmp_path / "run", save_every=1, report=interrupt_at(3))
        assert_identical(whole, trained(config, path=tmp_path / "run"))
        last = uninterrupted().model.state_dict()["text.embed.weight"]
        assert not torch.equal(whole.model.state_dict()["text.embed.weight"], last)
        restored = package.from_pretrained(tmp_path / "run").model.state_dict()
        assert all(torch.equal(restored[name], x) for name, x in whole.model.state_dict().items())

    def test_losses_are_read_every_few_steps_as_means(self, tmp_path):
        seen: list[Progress] = []
        few = trained(path=tmp_path / "run", log_every=3, report=seen.append).history
        every = uninterrupted().history
        assert few["step"].tolist() == [x.step for x in seen] == [3, 6, 7]
        for name in ("loss", "fsa", "gate", "gradient_norm"):
            want = [every[name][part].mean().item() for part in (slice(3), slice(3, 6), slice(6, 7))]
            assert few[name].tolist() == pytest.approx(want, rel=1e-6)
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [3, 6, 7]
        assert lines[0]["cmc"] == few["cmc"][0].item()
        assert all(line["seconds"] > line["seconds_waiting"] >= 0 for line in lines)

    def test_validation(self, tmp_path):
        modes = []

        def validate(model, objective):
            assert isinstance(objective, Objective)
            modes.append((model.training, torch.is_grad_enabled()))
            return {"score": len(modes)}

        found = trained(path=tmp_path / "run", log_every=4, validate=validate, validate_every=3)
        assert modes == [(False, False)] * 2
        scores = found.history["validation/score"]
        assert scores[~scores.isnan()].tolist() == [1, 2]
        want = uninterrupted().model.state_dict()
        assert all(torch.equal(x, want[name]) for name, x in found.model.state_dict().items())

    def test_the_learning_rate_warms_up_and_falls_to_zero(self):
        config = OptimConfig(lr=0.5, warmup=10, steps=100)
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
        names = {"loss", "cmc", "late_interaction", "region_phrase", "proposal_phrase", "fsa", "boxes", "gate"}
        names |= {"gradient_norm"}
        assert set(seen[0].losses) == set(history) - {"step", "seconds", "seconds_waiting"} == names
        assert all(history[name][1].item() == pytest.approx(seen[1].losses[name]) for name in names)

    def test_steps_reduce_the_loss(self):
        history = trained(SMALL.but(steps=100, lr=1e-2, warmup=5)).history
        for name in ("cmc", "region_phrase", "late_interaction"):
            assert history[name][-5:].mean() < 0.8 * history[name][:5].mean()

    def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(self, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
            trained(SMALL.but(lr=1e37, warmup=0), path=path)
        assert not (path / "state.safetensors").exists()

    def test_too_few_pairs(self):
        few = Pairs(**fields_of(slice(7)), vocabulary=scenes().pairs.vocabulary)
        with pytest.raises(ValueError, match="pairs: expected at least a batch of 8, got 7"):
            fit(few, SMALL)


def step_of(config: Config, vocabulary: int | None = None) -> Step:
    return Step(*build(config, vocabulary or scenes().pairs.vocabulary), config.optim.precision)


class TestStep:
    batch = staticmethod(lambda: scenes().pairs.batch(slice(8)))

    def test_the_gate_opens_as_contrast_is_learned(self):
        chance = math.log(8)
        gates = [contrast_gate([torch.tensor(chance * share)], 8).item() for share in (1.5, 1, 0.75, 0.5, 0)]
        assert gates == pytest.approx([0, 0, 1 / 16, 1 / 4, 1], abs=1e-6)
        assert contrast_gate([torch.tensor(0.0), torch.tensor(chance)], 8).item() == pytest.approx(1 / 4)
        assert contrast_gate([torch.tensor(0.0)], 1) == 1  # nothing to wait for
        config = SMALL.but(cmc=0.0, late_interaction=0.0, region_phrase=0.0)
        assert step_of(config)(self.batch(), 0)["gate"] == 1

    def test_a_model_that_tells_nothing_apart_does_not_label_for_itself(self):
        step = step_of(SMALL)
        for projection in (step.model.image_projection, step.model.text_projection):
            torch.nn.init.zeros_(projection.weight)  # what is left is the bias, the same for all
        losses = step(self.batch(), 0)
        contrast = losses["cmc"] + 0.5 * losses["late_interaction"] + losses["region_phrase"]
        assert losses["loss"].item() == pytest.approx(contrast.item(), rel=1e-6)
        losses["loss"].backward()
        assert step.model.region_head.project.weight.grad.abs().max() < 1e-9

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        config = SMALL.but(**NO_REGIONS, cmc=2.0, late_interaction=0.0, fsa=3.0)
        losses = step_of(config)(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "fsa", "gate"}
        gate = contrast_gate([losses["cmc"]], 8)
        assert losses["gate"] == gate
        assert losses["loss"].item() == pytest.approx((2 * losses["cmc"] + 3 * gate * losses["fsa"]).item())

    def test_sparse_grouping_adds_its_weighted_share(self):
        config = SMALL.but(**NO_REGIONS, late_interaction=0.0, sparse_grouping=3.0, fsa=0.0)
        losses = step_of(config)(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "sparse_grouping"}
        assert losses["loss"].item() == pytest.approx((losses["cmc"] + 3 * losses["sparse_grouping"]).item())

    def test_temperatures_are_learned_or_fixed(self):
        learned, fixed = (trained(SMALL.but(learn_logit_scale=x, logit_scale=20.0)).objective for x in (True, False))
        for name in ("logit_scale", "local_logit_scale"):
            assert getattr(learned, name)().item() != pytest.approx(20, rel=1e-4)
            assert getattr(fixed, name)().item() == pytest.approx(20, rel=1e-6)

    def test_temperatures_leave_their_cap(self):
        config = SMALL.but(logit_scale=60.0, max_local_logit_scale=60.0, weight_decay=0.0, steps=4)
        local = trained(config).objective.local_logit_scale
        assert 1 < local().item() < 59.9
        fixed = trained(config.but(learn_logit_scale=False, steps=1)).objective.local_logit_scale
        assert fixed().item() == pytest.approx(60, rel=1e-6)

    @pytest.mark.parametrize("source", ["exact", "sampled", "unsil"])
    def test_the_sources_of_fsa(self, source):
        step = step_of(SMALL.but({"fsa.source": source, "fsa.coalitions": 2}, boxes=0.0))
        reference = step_of(SMALL.but(boxes=0.0))
        reference.load_state_dict(step.state_dict(), strict=False)
        got, exact = step(self.batch(), 3), reference(self.batch(), 3)
        assert (got["fsa"] == exact["fsa"]) == (source == "exact")
        assert torch.equal(got["region_phrase"], exact["region_phrase"])
        again, later = step(self.batch(), 3), step(self.batch(), 4)
        assert torch.equal(again["fsa"], got["fsa"])
        assert torch.equal(later["fsa"], got["fsa"]) == (source == "exact")

    def test_the_interaction_learners_and_the_model_learn_apart(self):
        config = SMALL.but({"tsa.source": "unsil", "fsa.source": "unsil", "fsa.coalitions": 4}, tsa=1.0, clip=1e-3)
        step = step_of(config)
        losses = step(self.batch(), 0)
        metrics = {name for name in losses if "_unsil" in name}
        kinds = ("", "_computed", "_error", "_within_1", "_calibration_error")
        assert metrics >= {f"{name}_unsil{kind}" for name in ("fsa", "tsa") for kind in kinds}
        assert not any(losses[name].requires_grad for name in metrics)
        gate = contrast_gate([losses[name] for name in ("cmc", "late_interaction", "region_phrase")], 8)
        weights = {"cmc": 1, "late_interaction": 0.5, "region_phrase": 1, "proposal_phrase": gate, "fsa": gate}
        weights |= {"tsa": gate, "boxes": 2 * gate, "fsa_unsil": 1, "tsa_unsil": 1}
        assert losses["loss"].item() == pytest.approx(sum(w * losses[name].item() for name, w in weights.items()))
        without = step_of(config.but({"fsa.source": "sampled", "tsa.source": "computed"}))
        without.load_state_dict(step.state_dict(), strict=False)
        losses["loss"].backward()
        without(self.batch(), 0)["loss"].backward()
        for name, value in without.named_parameters():
            assert torch.equal(value.grad, step.get_parameter(name).grad), name
        model, *learners = step.parts()
        assert {id(x) for part in step.parts() for x in part} == {id(x) for x in step.parameters()}
        assert len(model) == len(list(without.parameters()))
        assert all(part and all(x.grad is not None for x in part) for part in learners)

    def test_the_learner_learns_from_what_it_is_told_to(self):
        computed = {}
        for targets in ("sampled", "exact"):
            unsil = {"fsa.source": "unsil", "fsa.targets": targets, "fsa.coalitions": 2}
            step, other = step_of(SMALL.but(unsil), 99), step_of(SMALL, 99)
            other.load_state_dict(step.state_dict(), strict=False)
            computed[targets] = torch.equal(step(self.batch(), 0)["fsa"], other(self.batch(), 0)["fsa"])
        assert computed == {"sampled": False, "exact": True}

    def test_boxes_learn_from_heat_and_heat_does_not_learn_from_boxes(self):
        step = step_of(SMALL)
        step(self.batch(), 0)["boxes"].backward()
        assert step.model.region_head.project.weight.grad.abs().max() > 0
        for module in (step.model.text, step.model.image_projection, step.model.text_projection):
            assert all(x.grad is None for x in module.parameters())

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
    def test_every_parameter_that_learns_gets_a_gradient(self, row):
        """DistributedDataParallel waits for each of them."""
        config = SMALL.but({"boxes.images": 4}).but(row.changes).but(late_interaction=row.objective.late_interaction)
        run = loop._Run(
            *build(config, scenes().pairs.vocabulary), [], config.optim, torch.device("cpu"), None, "ddp", None
        )
        run.module(self.batch(), 0)["loss"].backward()
        assert [n for n, x in run.module.named_parameters() if x.requires_grad and x.grad is None] == []
