use prost::Message;

use super::*;

fn finish(build: impl FnOnce(&mut GraphBuilder<'_>)) -> (proto::Model, Graph) {
    let weights = WeightIndex::default();
    let mut builder = GraphBuilder::new("test", &weights);
    build(&mut builder);
    let graph = builder.finish();
    (proto::Model::decode(graph.bytes.as_slice()).unwrap(), graph)
}

fn operators(model: &proto::Model) -> Vec<(String, Vec<String>, Vec<String>)> {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes
        .iter()
        .map(|node| (node.op_type.clone().unwrap(), node.input.clone(), node.output.clone()))
        .collect()
}

#[test]
fn an_output_is_the_value_itself() {
    let (model, _) = finish(|graph| {
        let x = graph.input("x", Type::F32, &[2.into()]);
        let y = graph.add(&x, &x);
        let z = graph.mul(&y, &x);
        graph.output(&y, "sum", Type::F32, &[2.into()]);
        graph.output(&z, "product", Type::F32, &[2.into()]);
    });
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        operators(&model),
        [
            ("Add".to_owned(), names(&["x", "x"]), names(&["sum"])),
            ("Mul".to_owned(), names(&["sum", "x"]), names(&["product"])),
        ]
    );
}

#[test]
fn an_output_that_has_a_name_already_is_copied() {
    let (model, _) = finish(|graph| {
        let x = graph.input("x", Type::F32, &[2.into()]);
        let y = graph.add(&x, &x);
        for (value, name) in [(&x, "same"), (&y, "sum"), (&y, "sum_again")] {
            graph.output(value, name, Type::F32, &[2.into()]);
        }
    });
    let copies: Vec<_> = operators(&model).into_iter().skip(1).collect();
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|(operator, ..)| operator == "Identity"));
    assert_eq!((copies[0].1[0].as_str(), copies[0].2[0].as_str()), ("x", "same"));
    assert_eq!((copies[1].1[0].as_str(), copies[1].2[0].as_str()), ("sum", "sum_again"));
}

#[test]
fn equal_constants_are_kept_once() {
    let (model, _) = finish(|graph| {
        let values = [graph.ints(&[1]), graph.ints(&[1]), graph.int(1), graph.float(1.0)];
        assert_eq!(values[0], values[1]);
        assert_ne!(values[0], values[2]);
        assert!(graph.floats(&[2], &[1.0]).is_err());
    });
    let initializers = &model.graph.as_ref().unwrap().initializer;
    assert_eq!(initializers.len(), 3);
    assert_eq!(initializers[0].raw_data.as_deref(), Some(&1i64.to_le_bytes()[..]));
    assert_eq!(initializers[0].dims, [1]);
}

#[test]
fn the_opset_is_the_lowest_that_serves() {
    let with = |operator: &'static str| {
        let (model, graph) = finish(|graph| {
            let x = graph.input("x", Type::F32, &["n".into()]);
            graph.node(operator, &[&x], &[]);
        });
        assert_eq!(model.opset_import[0].version, Some(graph.opset));
        (graph.opset, model.ir_version.unwrap())
    };
    assert_eq!(with("Add"), (18, 9));
    assert_eq!(with("Gelu"), (20, 9));
    assert_eq!(with("Attention"), (23, 10));
    assert_eq!(with("TensorScatter"), (24, 10));
}

#[test]
fn activations_have_the_names_of_transformers() {
    let from = |name| Activation::from_name("hidden_act", name);
    assert_eq!(from("gelu").unwrap(), Activation::Gelu);
    assert_eq!(from("gelu_new").unwrap(), Activation::GeluTanh);
    assert_eq!(from("silu").unwrap(), Activation::Silu);
    let error = from("mish").unwrap_err();
    assert!(error.message().contains("hidden_act is \"mish\""), "{error}");
}
