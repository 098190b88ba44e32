package iptables

import (
	"slices"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// setHealth lets clients of health check node ports in, on hosts whose INPUT policy is to drop. They are found with the
// node ports, among which the API server allocates them, so none is both.
func (r *Renderer) setHealth(ports []uint16) {
	t := r.trees[chainID{"filter", chainNodePorts}]
	key := func(port uint16) string {
		k, _ := dispatchKey(service.Key{Kind: service.NodePort, Protocol: model.TCP, Port: port})
		return k
	}
	for _, port := range r.health {
		if !slices.Contains(ports, port) {
			t.del(key(port))
		}
	}
	for _, port := range ports {
		t.put(key(port), rule("-p tcp", comment("braid health check of a service"), portMatch(model.TCP, port, port), "-j ACCEPT"))
	}
	r.health = ports
}
