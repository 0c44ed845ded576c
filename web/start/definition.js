/**
 * The definitions of the nodes whose sockets are a graph's ports, adapted for the editor. They are needed before any node is created, so this
 * module loads with the page.
 */

/** The classes of these nodes. */
export const REMOTE_GRAPH = "YggdrasillRemoteGraph";
export const RUN_GRAPH = "YggdrasillRunGraph";

/**
 * Adapt the definition of such a class: no sockets before a contract is stored, and lists to choose from.
 * @param {object} definition as /object_info returns it; changed in place
 */
export function shapeDefinition(definition) {
  const { required, optional } = definition.input;
  removePorts(definition);
  if (definition.name === RUN_GRAPH) return;
  required.graph = [[""], { ...required.graph[1], socketless: true }];
  required.endpoint = [["auto"], { ...required.endpoint[1], socketless: true }];
  required.contract = ["STRING", { ...required.contract[1], multiline: false, hidden: true, socketless: true }];
  if (optional.seed) optional.seed = ["INT", { ...optional.seed[1], control_after_generate: "fixed" }];
}

/** Remove the sockets of a graph's ports; they are created later. */
function removePorts(definition) {
  delete definition.input.optional.ports;
  const order = definition.input_order;
  if (order?.optional) order.optional = order.optional.filter((name) => name !== "ports");
  Object.assign(definition, { output: [], output_name: [], output_is_list: [], output_tooltips: [] });
}
