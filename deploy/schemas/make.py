#!/usr/bin/env python3
"""Makes kinds.json: JSON schemas (2020-12) of the types that the manifests of deploy/ use.

    python3 deploy/schemas/make.py            # downloads the pinned wheels with pip
    python3 deploy/schemas/make.py WHEELS     # a folder that has them

The wheels are read, not installed: their generated type tables are Python source, parsed with `ast`. Every object
refuses fields that its type does not have. A field whose type is not in FOLLOWED is refused too (`false`): add the
type here before a manifest uses it.
"""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "kubernetes-36.0.3-py2.py3-none-any.whl": "8fde9241c4b298e6374a069dcf728359b4e72c2fb29489a975ba4e1c047cf10f",
    "kserve-0.21.0-py3-none-any.whl": "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b",
    "cloudcoil_models_prometheus_operator-0.80.1.0-py3-none-any.whl":
        "a139a60cc0114caace847a34275d7a7cd899ec2dad4120504d8e1cf6a8de0270",
}

# apiVersion and kind of a manifest, and its type.
KINDS = {
    "apps/v1/Deployment": "V1Deployment",
    "autoscaling/v2/HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "monitoring.coreos.com/v1/ServiceMonitor": "ServiceMonitor",
    "policy/v1/PodDisruptionBudget": "V1PodDisruptionBudget",
    "serving.kserve.io/v1alpha1/ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "serving.kserve.io/v1beta1/InferenceService": "V1beta1InferenceService",
    "v1/PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "v1/Service": "V1Service",
    "v1/ServiceAccount": "V1ServiceAccount",
}

FOLLOWED = set(KINDS.values()) | {
    # Kubernetes: pods
    "V1Affinity", "V1Capabilities", "V1Container", "V1ContainerPort", "V1DeploymentSpec",
    "V1DeploymentStrategy", "V1EmptyDirVolumeSource", "V1EnvVar", "V1EnvVarSource", "V1ExecAction",
    "V1HTTPGetAction", "V1LabelSelector", "V1LabelSelectorRequirement", "V1Lifecycle",
    "V1LifecycleHandler", "V1LocalObjectReference", "V1NodeAffinity", "V1NodeSelector", "V1NodeSelectorRequirement",
    "V1NodeSelectorTerm", "V1ObjectFieldSelector", "V1ObjectMeta",
    "V1PersistentVolumeClaimVolumeSource", "V1PodAffinityTerm", "V1PodAntiAffinity", "V1PodSecurityContext",
    "V1PodSpec", "V1PodTemplateSpec", "V1PreferredSchedulingTerm", "V1Probe", "V1ResourceRequirements",
    "V1RollingUpdateDeployment", "V1SeccompProfile", "V1SecretKeySelector",
    "V1SecurityContext", "V1Toleration", "V1TopologySpreadConstraint",
    "V1Volume", "V1VolumeMount", "V1WeightedPodAffinityTerm",
    # Kubernetes: the others
    "V1PersistentVolumeClaimSpec", "V1PodDisruptionBudgetSpec", "V1ServicePort", "V1ServiceSpec",
    "V1VolumeResourceRequirements", "V2CrossVersionObjectReference", "V2HPAScalingPolicy", "V2HPAScalingRules",
    "V2HorizontalPodAutoscalerBehavior", "V2HorizontalPodAutoscalerSpec", "V2MetricIdentifier", "V2MetricSpec",
    "V2MetricTarget", "V2PodsMetricSource", "V2ResourceMetricSource",
    # KServe
    "V1alpha1ServingRuntimeSpec", "V1alpha1SupportedModelFormat", "V1beta1InferenceServiceSpec",
    "V1beta1ModelFormat", "V1beta1ModelSpec", "V1beta1PredictorSpec",
    # The Prometheus operator
    "Endpoint", "NamespaceSelectorModel2", "Selector", "ServiceMonitorSpec",
}

# The type tables call a quantity a string, and have no enumerations. These are of the API reference,
# https://kubernetes.io/docs/reference/kubernetes-api/.
QUANTITY = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[+-]?[0-9]+(\.[0-9]*)?([KMGTPE]i|[mkMGTPE]|[eE][+-]?[0-9]+)?$"}]}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
OTHERWISE = {
    ("V1ResourceRequirements", "limits"): QUANTITIES,
    ("V1ResourceRequirements", "requests"): QUANTITIES,
    ("V1VolumeResourceRequirements", "limits"): QUANTITIES,
    ("V1VolumeResourceRequirements", "requests"): QUANTITIES,
    ("V1EmptyDirVolumeSource", "sizeLimit"): QUANTITY,
    ("V2MetricTarget", "averageValue"): QUANTITY,
    ("V2MetricTarget", "value"): QUANTITY,
    ("V1Container", "imagePullPolicy"): {"enum": ["Always", "IfNotPresent", "Never"]},
    ("V1ContainerPort", "protocol"): {"enum": ["TCP", "UDP", "SCTP"]},
    ("V1ServicePort", "protocol"): {"enum": ["TCP", "UDP", "SCTP"]},
    ("V1ServiceSpec", "type"): {"enum": ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]},
    ("V1HTTPGetAction", "scheme"): {"enum": ["HTTP", "HTTPS"]},
    ("V1EmptyDirVolumeSource", "medium"): {"enum": ["", "Memory"]},
    ("V1SeccompProfile", "type"): {"enum": ["Localhost", "RuntimeDefault", "Unconfined"]},
    ("V1PodSecurityContext", "fsGroupChangePolicy"): {"enum": ["Always", "OnRootMismatch"]},
    ("V1DeploymentStrategy", "type"): {"enum": ["Recreate", "RollingUpdate"]},
    ("V1TopologySpreadConstraint", "whenUnsatisfiable"): {"enum": ["DoNotSchedule", "ScheduleAnyway"]},
    ("V1PersistentVolumeClaimSpec", "accessModes"): {
        "type": "array",
        "items": {"enum": ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]},
    },
    ("V2HPAScalingPolicy", "type"): {"enum": ["Pods", "Percent"]},
    ("V2HPAScalingRules", "selectPolicy"): {"enum": ["Max", "Min", "Disabled"]},
    ("V2MetricSpec", "type"): {"enum": ["ContainerResource", "External", "Object", "Pods", "Resource"]},
    ("V2MetricTarget", "type"): {"enum": ["AverageValue", "Utilization", "Value"]},
}

SIMPLE = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "datetime": {"type": "string"},
    # What Kubernetes calls IntOrString; the other fields without a type (status) are left out by hand.
    "object": {"type": ["integer", "string"]},
}


def schema_of(name):
    """The schema of a type as the tables of openapi-generator write it: list[V1Probe], dict(str, str)."""
    if name in SIMPLE:
        return SIMPLE[name]
    if container := re.fullmatch(r"(list|dict)[\[(](.*)[\])]", name):
        of = container[2]
        if container[1] == "list":
            return {"type": "array", "items": schema_of(of)}
        return {"type": "object", "additionalProperties": schema_of(of.removeprefix("str,").strip())}
    return {"$ref": f"#/$defs/{name}"} if name in FOLLOWED else False


def definition(name, fields, required):
    properties = {}
    for key, schema in fields.items():
        schema = OTHERWISE.pop((name, key), schema)
        # What only a server writes.
        properties[key] = False if key in ("status", "managedFields") else schema
    for kind, of in KINDS.items():
        if of == name:
            version, _, kind = kind.rpartition("/")
            properties |= {"apiVersion": {"const": version}, "kind": {"const": kind}}
            required = sorted({*required, "apiVersion", "kind", "metadata"})
    schema = {"type": "object", "properties": dict(sorted(properties.items())), "additionalProperties": False}
    return schema | ({"required": sorted(required)} if required else {})


def openapi_tables(wheel, folder):
    """The types of a client made by openapi-generator: two tables a class, and setters that refuse None."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for file in archive.namelist():
            if not (file.startswith(folder) and file.endswith(".py")):
                continue
            source = archive.read(file).decode()
            if not any(f"class {name}(" in source for name in FOLLOWED):
                continue
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef) and node.name in FOLLOWED:
                    tables = {
                        item.targets[0].id: ast.literal_eval(item.value)
                        for item in node.body
                        if isinstance(item, ast.Assign) and item.targets[0].id in ("openapi_types", "attribute_map")
                    }
                    keys = tables["attribute_map"]
                    fields = {keys[name]: schema_of(of) for name, of in tables["openapi_types"].items()}
                    required = {keys[name] for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)}
                    found[node.name] = definition(node.name, fields, required)
    return found


def annotation_schema(node):
    """The schema of a pydantic annotation, its key where it says one, and whether it may be left out."""
    if isinstance(node, ast.Constant):
        return annotation_schema(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Subscript):
        outer, inner = ast.unparse(node.value), node.slice
        if outer == "Annotated":
            schema, _, optional = annotation_schema(inner.elts[0])
            said = {word.arg: ast.literal_eval(word.value) for word in inner.elts[1].keywords}
            if "pattern" in said and schema:
                schema = schema | {"pattern": said["pattern"]}
            return schema, said.get("alias"), optional
        if outer == "Optional":
            return annotation_schema(inner)[0], None, True
        if outer == "List":
            return {"type": "array", "items": annotation_schema(inner)[0]}, None, False
        if outer == "Dict":
            return {"type": "object", "additionalProperties": annotation_schema(inner.elts[1])[0]}, None, False
        if outer == "Literal":
            return {"enum": list(ast.literal_eval(inner)) if isinstance(inner, ast.Tuple) else [ast.literal_eval(inner)]}, None, False
        if outer == "Union":
            return {"anyOf": [annotation_schema(item)[0] for item in inner.elts]}, None, False
    name = ast.unparse(node)
    return schema_of({"apimachinery.ObjectMeta": "V1ObjectMeta"}.get(name, name)), None, False


def pydantic_classes(wheel, file):
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read(file).decode())
    found = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name in FOLLOWED:
            fields, required = {}, set()
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    schema, alias, optional = annotation_schema(item.annotation)
                    fields[alias or item.target.id] = schema
                    if not optional:
                        required.add(alias or item.target.id)
            found[node.name] = definition(node.name, fields, required)
    return found


def main():
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        if len(sys.argv) == 1:
            wanted = [file.split("-")[0].replace("_", "-") + "==" + file.split("-")[1] for file in WHEELS]
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *wanted], check=True)
        for file, digest in WHEELS.items():
            got = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            assert got == digest, f"{file}: its SHA-256 is {got}"
        kubernetes, kserve, prometheus = (folder / file for file in WHEELS)
        definitions = (
            pydantic_classes(prometheus, "cloudcoil/models/prometheus_operator/v1.py")
            | openapi_tables(kserve, "kserve/models/")
            | openapi_tables(kubernetes, "kubernetes/client/models/")
        )
    assert not OTHERWISE, f"no such fields: {sorted(OTHERWISE)}"
    assert not FOLLOWED - definitions.keys(), f"not found: {sorted(FOLLOWED - definitions.keys())}"
    text = json.dumps(definitions, separators=(",", ":"))
    unused = FOLLOWED - set(KINDS.values()) - set(re.findall(r"#/\$defs/(\w+)", text))
    assert not unused, f"nothing refers to {sorted(unused)}"
    lines = [f"  {json.dumps(name)}: {json.dumps(definitions[name], separators=(',', ':'))}" for name in sorted(definitions)]
    kinds = [f"  {json.dumps(kind)}: {json.dumps('#/$defs/' + of)}" for kind, of in sorted(KINDS.items())]
    (here / "kinds.json").write_text(
        '{\n"$schema": "https://json-schema.org/draft/2020-12/schema",\n'
        f'"$comment": "Made by make.py of {", ".join(WHEELS)}; do not edit.",\n'
        '"kinds": {\n' + ",\n".join(kinds) + '\n},\n"$defs": {\n' + ",\n".join(lines) + "\n}\n}\n"
    )


if __name__ == "__main__":
    main()
