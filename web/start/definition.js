/**
 * The classes of the nodes whose sockets are a graph's ports, as the editor shows them: known before any node is made, so that this loads
 * with the page.
 */

/** The nodes' classes. */
export const REMOTE_GRAPH = "YggdrasillRemoteGraph";
export const RUN_GRAPH = "YggdrasillRunGraph";

/**
 * Make such a class one of the editor: no socket before there is a contract, and lists to choose from.
 * @param {object} definition as /object_info gives it; changed in place
 */
export function shapeDefinition(definition) {
  const { required, optional } = definition.input;
  withoutPorts(definition);
  if (definition.name === RUN_GRAPH) return;
  required.graph = [[""], { ...required.graph[1], socketless: true }];
  required.endpoint = [["auto"], { ...required.endpoint[1], socketless: true }];
  required.contract = ["STRING", { ...required.contract[1], multiline: false, hidden: true, socketless: true }];
  if (optional.seed) optional.seed = ["INT", { ...optional.seed[1], control_after_generate: "fixed" }];
}

/** The sockets of a graph's ports are made later. */
function withoutPorts(definition) {
  delete definition.input.optional.ports;
  const order = definition.input_order;
  if (order?.optional) order.optional = order.optional.filter((name) => name !== "ports");
  Object.assign(definition, { output: [], output_name: [], output_is_list: [], output_tooltips: [] });
}
