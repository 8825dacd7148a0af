"""Laws of the view law: regions, guard, separation."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from medshift.data import views
from medshift.data.projection import SOURCE_ISOCENTRE, camera


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_directions_agree_with_the_projector() -> None:
    poses = views._draw(50, generator()).float()
    poses[:, 3:5] = 0
    expected = camera(poses).source / SOURCE_ISOCENTRE
    np.testing.assert_allclose(views.directions(*poses[:, :2].double().numpy().T), expected.numpy(), atol=1e-5)


def test_rotation_convention_agrees_with_the_projector() -> None:
    poses = views._draw(50, generator()).float()
    poses[:, 3:5] = 0
    view = camera(poses)
    angles = poses[:, [0, 1, 2]].double().numpy() * [1.0, -1.0, 1.0]
    rotation = Rotation.from_euler("ZXY", angles, degrees=True)
    # The camera's frame is the rotation applied to the patient's axes: x right, z up, y from source to detector.
    np.testing.assert_allclose(rotation.apply([1.0, 0, 0]), view.right.numpy(), atol=1e-5)
    np.testing.assert_allclose(rotation.apply([0, 0, -1.0]), view.down.numpy(), atol=1e-5)


def test_training_directions_keep_their_distance_from_every_held_out_one() -> None:
    trained = views.draw_trained(400, generator(1)).double().numpy()
    held_out = views.draw_held_out(400, generator(2)).double().numpy()
    cosine = views.directions(*trained[:, :2].T) @ views.directions(*held_out[:, :2].T).T
    # Exact angles between drawn views, not the grid that the draw itself uses: half a degree of slack.
    assert np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).min() >= views.GUARD - 0.75


def test_regions_name_what_was_drawn() -> None:
    held_out = views.region_of(views.draw_held_out(300, generator(3)))
    assert {"posterior-oblique-left", "posterior-oblique-right", "low-elevation"} == set(held_out)
    assert all(name.startswith("az") for name in views.region_of(views.draw_trained(300, generator(4))))


def test_separation_removes_a_planted_neighbour() -> None:
    poses = views.draw_trained(300, generator(5))
    roles = ["train:real-low"] * 150 + ["train:real-normal"] * 100 + ["T2"] * 50
    poses[200] = poses[10] + torch.tensor([1.2, 0.5, 0.6, 1.0, -2.0, 40.0])
    poses[299] = poses[100] + torch.tensor([0.0, 0.3, 0.0, 4.0, 0.0, -30.0])
    found = {tuple(sorted(pair)) for pair in views.neighbours(poses, roles).tolist()}
    assert {(10, 200), (100, 299)} <= found
    separated = views.separate(poses, roles, [False] * 300, generator(6))
    assert len(views.neighbours(separated, roles)) == 0
    assert torch.equal(separated[:10], poses[:10])


def test_separation_measures_the_whole_rotation_and_the_shift() -> None:
    pose = torch.tensor([[10.0, 5.0, 0.0, 0.0, 0.0, 250.0]])
    roles = ["train:real-low", "T0"]

    def close(*change: float) -> bool:
        return len(views.neighbours(torch.cat([pose, pose + torch.tensor([change])]), roles)) == 1

    assert close(0, 0, 1.9, 0, 0, 0) and not close(0, 0, 2.1, 0, 0, 0)  # roll counts
    assert close(0, 1.9, 0, 0, 0, 0) and not close(0, 2.1, 0, 0, 0, 0)
    assert not close(0, 1.6, 1.6, 0, 0, 0)  # two small angles make a large one
    assert close(0, 0, 0, 3, 3.9, 0) and not close(0, 0, 0, 3.6, 3.6, 0)
    assert len(views.neighbours(torch.cat([pose, pose]), ["T0", "T1"])) == 0  # neither is trained on


def test_brute_force_finds_no_other_neighbours() -> None:
    poses = views.draw_trained(120, generator(7))
    poses[:, :2] = poses[:, :2] * 0.05  # crowd them
    roles = [f"train:{i % 3}" for i in range(120)]
    pose = poses.double().numpy()
    rotation = Rotation.from_euler("ZXY", pose[:, :3] * [1.0, -1.0, 1.0], degrees=True)
    expected = {
        (i, j)
        for i in range(120)
        for j in range(i + 1, 120)
        if i % 3 != j % 3
        and np.rad2deg((rotation[i].inv() * rotation[j]).magnitude()) <= 2
        and np.linalg.norm(pose[i, 3:5] - pose[j, 3:5]) <= 5
    }
    assert expected and {tuple(p) for p in np.sort(views.neighbours(poses, roles), axis=1).tolist()} == expected
