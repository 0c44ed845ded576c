/**
 * The class of the Remote Graph node as the editor shows it: known before any node is made, so that it loads with the page.
 */

/** The node's class. */
export const REMOTE_GRAPH = "YggdrasillRemoteGraph";

/**
 * Make the node's class one of the editor: lists to choose from, no socket before there is a contract.
 * @param {object} definition as /object_info gives it; changed in place
 */
export function shapeDefinition(definition) {
  const { required, optional } = definition.input;
  required.graph = [[""], { ...required.graph[1], socketless: true }];
  required.endpoint = [["auto"], { ...required.endpoint[1], socketless: true }];
  required.contract = ["STRING", { ...required.contract[1], multiline: false, hidden: true, socketless: true }];
  if (optional.seed) optional.seed = ["INT", { ...optional.seed[1], control_after_generate: "fixed" }];
  delete optional.ports;
  const order = definition.input_order;
  if (order?.optional) order.optional = order.optional.filter((name) => name !== "ports");
  Object.assign(definition, { output: [], output_name: [], output_is_list: [], output_tooltips: [] });
}
