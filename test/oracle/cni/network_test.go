package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// object is a JSON object.
type object = map[string]any

const podCount = 3

// network is one case: what an administrator writes and what a runtime asks for. It is plain JSON, so that it
// can be copied, made smaller and shown.
type network struct {
	Version string
	Bridge  object   // the reference plugin bridge, with ipam
	Chain   []object // plugins after it
	Pods    [podCount]request
	Steps   []step
	Wrong   string // what was made wrong on purpose, if anything
	Back    bool   // the third node begins with ours
	Kept    bool   // portmap and bandwidth stay in the chain after ours
}

// request is what a runtime says about one pod.
type request struct {
	Args [][2]string
	Caps object
}

// step is one call.
type step struct {
	Verb string
	Pod  int
	Keep []int // GC: pods to keep
}

// Verbs. All but the last four are the specification's.
const (
	add    = "ADD"
	del    = "DEL"
	check  = "CHECK"
	gc     = "GC"
	status = "STATUS"

	addElsewhere = "ADD with another namespace"
	delNowhere   = "DEL without a namespace"
	delGone      = "DEL of a namespace that is gone"
	probe        = "traffic"
	handover     = "handover" // the third node goes on with the other plugin
)

func (s step) String() string {
	switch s.Verb {
	case status, probe, handover:
		return s.Verb
	case gc:
		return fmt.Sprint(s.Verb, " keeping ", s.Keep)
	}
	return fmt.Sprintf("%s of pod%d", s.Verb, s.Pod)
}

func (n *network) String() string {
	b, err := json.MarshalIndent(n, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (n *network) clone() *network {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // it is made of plain values
	}
	c := &network{}
	if err := json.Unmarshal(b, c); err != nil {
		panic(err)
	}
	return c
}

// theirs is the configuration for the reference plugins.
func (n *network) theirs(dataDir string) []byte {
	c := n.clone()
	c.Bridge["type"] = "bridge"
	c.ipam()["dataDir"] = dataDir
	return c.list(append([]object{c.Bridge}, c.Chain...))
}

// ours is the same for our plugin: the type changes, and unless Kept it takes over what portmap and bandwidth are asked for.
func (n *network) ours(dataDir string) []byte {
	c := n.clone()
	c.Bridge["type"] = "braid"
	c.ipam()["dataDir"] = dataDir
	caps, _ := c.Bridge["capabilities"].(object)
	chain := []object{c.Bridge}
	for _, p := range c.Chain {
		if t := p["type"]; n.Kept || t != "portmap" && t != "bandwidth" {
			chain = append(chain, p)
			continue
		}
		maps.Copy(caps, p["capabilities"].(object))
	}
	return c.list(chain)
}

func (n *network) ipam() object { return n.Bridge["ipam"].(object) }

func (n *network) list(plugins []object) []byte {
	b, err := json.Marshal(object{"cniVersion": n.Version, "name": "net", "plugins": plugins})
	if err != nil {
		panic(err)
	}
	return b
}

// has tells whether a plugin is in the chain.
func (n *network) has(plugin string) bool {
	return slices.ContainsFunc(n.Chain, func(p object) bool { return p["type"] == plugin })
}

// is tells whether an option of bridge is on.
func (n *network) is(option string) bool { return n.Bridge[option] == true }

// gateways lists the gateways of all ranges, with their networks.
func (n *network) gateways() map[netip.Addr]netip.Prefix {
	list, out := []any{n.ipam()}, map[netip.Addr]netip.Prefix{}
	sets, _ := n.ipam()["ranges"].([]any)
	for _, p := range n.Pods {
		more, _ := p.Caps["ipRanges"].([]any)
		sets = slices.Concat(sets, more)
	}
	for _, set := range sets {
		list = slices.Concat(list, set.([]any))
	}
	for _, r := range list {
		text, _ := r.(object)["subnet"].(string)
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		gateway := subnet.Addr().Next()
		if own, ok := r.(object)["gateway"].(string); ok {
			gateway = netip.MustParseAddr(own)
		}
		out[gateway] = subnet
	}
	return out
}

// routeWords is what ipam.routes say of a route besides its gateway, as facts have it.
func (n *network) routeWords(dst string) string {
	list, _ := n.ipam()["routes"].([]any)
	for _, r := range list {
		if r := r.(object); r["dst"] == dst {
			value := func(key string) int { f, _ := r[key].(float64); return int(f) }
			return also(value("mtu"), value("advmss"), value("priority"))
		}
	}
	return ""
}

// mapping is one of a pod's port mappings.
type mapping struct {
	HostPort, ContainerPort int
	Protocol, HostIP        string
}

func (n *network) mappings(pod int) (list []mapping) {
	if !n.has("portmap") {
		return nil
	}
	b, _ := json.Marshal(n.Pods[pod].Caps["portMappings"])
	_ = json.Unmarshal(b, &list) // what is wrong on purpose leads nowhere
	return list
}

// smaller returns networks that have one thing less each, the large things first.
func (n *network) smaller() (out []*network) {
	less := func(edit func(c *network)) {
		c := n.clone()
		edit(c)
		out = append(out, c)
	}
	for i := range n.Chain {
		less(func(c *network) { c.Chain = slices.Delete(c.Chain, i, i+1) })
	}
	for i := len(n.Steps) - 1; i >= 0; i-- {
		less(func(c *network) { c.Steps = slices.Delete(c.Steps, i, i+1) })
	}
	for _, key := range slices.Sorted(maps.Keys(n.Bridge)) {
		if key != "ipam" && key != "capabilities" && key != "bridge" {
			less(func(c *network) { delete(c.Bridge, key) })
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.ipam())) {
		list, _ := n.ipam()[key].([]any)
		switch {
		case len(list) > 1:
			for i := range list {
				less(func(c *network) { c.ipam()[key] = slices.Delete(c.ipam()[key].([]any), i, i+1) })
			}
		case key != "type" && key != "ranges":
			less(func(c *network) { delete(c.ipam(), key) })
		}
	}
	for i, p := range n.Pods {
		for j := range p.Args {
			less(func(c *network) { c.Pods[i].Args = slices.Delete(c.Pods[i].Args, j, j+1) })
		}
		for _, key := range slices.Sorted(maps.Keys(p.Caps)) {
			list, _ := p.Caps[key].([]any)
			for j := range list {
				less(func(c *network) { c.Pods[i].Caps[key] = slices.Delete(c.Pods[i].Caps[key].([]any), j, j+1) })
			}
			less(func(c *network) { delete(c.Pods[i].Caps, key) })
		}
	}
	return out
}
