#!/usr/bin/env python3
"""Checks deploy/kubernetes without a cluster: every object against Kubernetes' JSON schemas
(fetched by tests/kubernetes-schemas) of the oldest supported and the newest version; references
between objects; and the command line of every container, probe and hook against the binary.

    tests/manifests.py --binary PATH

Prints one JSON object, with the reason in "skipped" if it could not run. Exits 1 if it found
something wrong.
"""

import argparse
import copy
import json
import pathlib
import subprocess
import sys
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
MANIFESTS = ROOT / "deploy/kubernetes"
PACKAGES = ROOT / "target/kubernetes"
# The first version with native sidecars on by default.
OLDEST = "1.29"
KUSTOMIZATION = {"apiVersion", "kind", "resources", "images", "configMapGenerator", "generatorOptions"}


def rendered():
    """The output of `kubectl kustomize`, for the part of a kustomization that we use."""
    import yaml
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert set(kustomization) <= KUSTOMIZATION, f"unknown to this check: {set(kustomization) - KUSTOMIZATION}"
    assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
    objects = [one for name in kustomization["resources"] for one in yaml.safe_load_all((MANIFESTS / name).read_text())]
    for generator in kustomization["configMapGenerator"]:
        data = {name: (MANIFESTS / name).read_text() for name in generator["files"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in kustomization["images"]}
    return objects, images


def accepted(binary, words):
    """Whether the binary takes this command line. It then fails: no broker can be at that path."""
    assert words[0] in ("/usr/bin/bindonce", "sleep"), words
    if words[0] == "sleep":
        return True
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "BINDONCE_SOCKET": "/proc/nowhere/bindonce.sock"}
    done = subprocess.run([binary, *words[1:]], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert done.returncode in (1, 2), (words, done)
    return done.returncode == 1


def check(binary):
    import kubernetes_validate
    warnings.simplefilter("ignore")
    objects, images = rendered()
    newest = kubernetes_validate.latest_version()
    wrong, checked = [], []
    for version in (OLDEST, newest):
        for one in objects:
            try:
                kubernetes_validate.validate(one, version, strict=True)
                checked.append(f"{one['kind']} {one['metadata']['name']} {version}")
            except kubernetes_validate.ValidationError as error:
                wrong.append(f"{one['kind']} {version}: {list(error.path)}: {error.message}")
    # The schemas must find an unknown member.
    broken = copy.deepcopy(objects[0])
    broken["spec"]["template"]["spec"]["initContainers"][0]["restartPolicyy"] = "Always"
    try:
        kubernetes_validate.validate(broken, newest, strict=True)
        wrong.append("the schemas accept a member that does not exist")
    except kubernetes_validate.ValidationError:
        pass

    of = lambda kind: next(one for one in objects if one["kind"] == kind)
    pod = of("Deployment")["spec"]["template"]
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    say = lambda holds, what: None if holds else wrong.append(what)
    say(of("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items(), "the Deployment does not select its pods")
    say(of("Service")["spec"]["selector"].items() <= labels.items(), "the Service does not select the pods")
    (broker,), (proxy,) = spec["initContainers"], spec["containers"]
    say(broker.get("restartPolicy") == "Always" and "startupProbe" in broker, "the broker is no native sidecar that is waited for")
    ports = {port["name"] for port in proxy["ports"]}
    say(all(port["targetPort"] in ports for port in of("Service")["spec"]["ports"]), "the Service has a port that no container has")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    say(volumes["configuration"]["configMap"]["name"] == of("ConfigMap")["metadata"]["name"], "no such ConfigMap")
    say(any(port["containerPort"] == 80 for port in proxy["ports"]) and "bind :80" in of("ConfigMap")["data"]["haproxy.cfg"],
        "haproxy does not bind the container's port")
    commands = []
    for container in (broker, proxy):
        name = container["name"]
        say(container["image"] in images, f"{name}: its image is not in the kustomization")
        say(all(mount["name"] in volumes for mount in container["volumeMounts"]), f"{name}: mounts an unknown volume")
        say(all("subPath" not in mount for mount in container["volumeMounts"]), f"{name}: a subPath never changes")
        say(container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                             "capabilities": {"drop": ["ALL"]}}, f"{name}: is not confined")
        commands.append(["/usr/bin/bindonce", *container["args"]])
        commands += [container[probe]["exec"]["command"] for probe in container if probe.endswith("Probe")]
        commands += [hook["exec"]["command"] for hook in container.get("lifecycle", {}).values()]
    context = spec["securityContext"]
    say(context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}, "the pod is not confined")
    wrong += [f"the binary does not take {' '.join(words)}" for words in commands if not accepted(binary, words)]
    # kustomize may not read outside its directory, so the file is there twice.
    bare = lambda path: [line for line in path.read_text().splitlines() if not line.startswith("#")]
    say(bare(MANIFESTS / "haproxy.cfg") == bare(ROOT / "deploy/container/haproxy/haproxy.cfg"), "the two haproxy.cfg differ")
    return {"checked": checked, "commands": len(commands), "wrong": wrong}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target/release/bindonce"))
    options = parser.parse_args()
    fetched = subprocess.run([ROOT / "tests/kubernetes-schemas"], capture_output=True, text=True)
    if not PACKAGES.is_dir():
        result = {"skipped": f"no Kubernetes schemas: {(fetched.stdout + fetched.stderr).strip()}"}
    else:
        sys.path.insert(0, str(PACKAGES))
        result = check(options.binary)
    print(json.dumps(result, indent=2))
    sys.exit(1 if result.get("wrong") else 0)


if __name__ == "__main__":
    main()
