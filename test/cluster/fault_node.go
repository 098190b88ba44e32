package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// reservations are the addresses that a node's CNI plugin holds, with the sandbox each is for: the first line
// of the file that is named after the address.
func (o *options) reservations(node string) (map[string]string, error) {
	dir := o.path(node, "var/lib/braid/networks/braid")
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if os.IsNotExist(err) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, err
		}
		id, _, _ := strings.Cut(string(data), "\n")
		out[e.Name()] = strings.TrimSpace(id)
	}
	return out, nil
}

// askName asks the load program behind an address for its name, from a node.
func (o *options) askName(node, addr string) (name string, err error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return "", err
	}
	return o.askLoad(node, netip.AddrPortFrom(ip, webPort), "who")
}

// loseNode ends a node as a power cut does: its programs, and its network with all links and rules. What was
// in memory is gone; with empty its disk too.
func (r *rig) loseNode(i int, empty bool) error {
	node := nodeName(i)
	space := []string{r.o.nsName(node)}
	if _, err := killInhabitants(r.ctx, space); err != nil {
		return err
	}
	// A process that just ended may still hold the mount.
	if err := await(r.ctx, "the namespace of "+node+" to go", killWait, func() error { return deleteSpace(space[0]) }); err != nil {
		return err
	}
	hub, err := openSpace(r.o.nsName(control))
	if err != nil {
		return err
	}
	defer hub.close()
	err = await(r.ctx, "the wire of "+node+" to go", killWait, func() error {
		if _, err := hub.nl.LinkByName(node); err == nil {
			return errors.New("it is still there")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := removeCgroups(r.o.cgroup() + "/" + node); err != nil {
		return err
	}
	lost := []string{"run", "tmp", "cgroup", socketFile, pidFile}
	if empty {
		lost = append(lost, "var", "etc", "etc-work", "opt")
	}
	for _, name := range lost {
		if err := os.RemoveAll(r.o.path(node, name)); err != nil {
			return err
		}
	}
	return nil
}

// bootNode starts a lost node. Images are loaded again only onto an empty disk.
func (r *rig) bootNode(i int, empty bool) error {
	ctx := context.WithoutCancel(r.ctx)
	hub, err := openSpace(r.o.nsName(control))
	if err != nil {
		return err
	}
	defer hub.close()
	if err := buildNode(r.o, i, hub); err != nil {
		return err
	}
	if err := startRuntime(ctx, r.o, i); err != nil {
		return err
	}
	if empty {
		for _, file := range append([]string{r.o.testArchive(), r.o.path("load.tar")}, r.o.Images...) {
			if err := importImage(ctx, r.o, nodeName(i), file); err != nil {
				return err
			}
		}
	}
	return start(ctx, r.o, nodeName(i), r.o.kubelet(i))
}

func faultNodeLost(r *rig) error  { return r.nodeLost(false) }
func faultNodeEmpty(r *rig) error { return r.nodeLost(true) }

// nodeLost: after its return a node runs the same pods, every address belongs to one pod, nothing is left of
// the sandboxes that were lost, and everything works.
func (r *rig) nodeLost(empty bool) error {
	i := r.o.Nodes
	node := nodeName(i)
	before, err := r.kernels()
	if err != nil {
		return err
	}
	old, err := r.o.reservations(node)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := joinErr(r.loseNode(i, empty), r.bootNode(i, empty)); err != nil {
		return err
	}
	err = r.settled(node, old)
	r.verdict(err == nil, "%s is back %.1fs after it was lost: Ready, its pods run, their addresses are theirs alone, nothing is left of the old ones%s",
		node, time.Since(begin).Seconds(), because(err))
	for i := range r.o.Nodes {
		// Its pods may have got other addresses, which services then lead to: only the overlay is the same.
		name := nodeName(i + 1)
		now, err := r.o.kernel(r, name)
		if err != nil {
			return err
		}
		gone := before[name].overlay().missing(now.overlay())
		r.verdict(len(gone) == 0, "the overlay of %s is as it was: %d lines, %d missing: %s", name, len(before[name].overlay()), len(gone), few(gone))
	}
	return r.newTraffic()
}

// overlay picks the lines about devices of the overlay.
func (s snapshot) overlay() (out snapshot) {
	for _, l := range s {
		for _, mark := range []string{"braid.vx", "proto 66", "PERMANENT", "self permanent"} {
			if strings.Contains(l, mark) {
				out = append(out, l)
				break
			}
		}
	}
	return out
}

// newTraffic starts the traffic anew, towards the addresses that pods have now.
func (r *rig) newTraffic() (err error) {
	if err := stopTraffic(r.ctx, r.o); err != nil {
		return err
	}
	r.traffic, err = startTraffic(r.ctx, r.o, r.api)
	return err
}

// settled waits until a node is Ready with all its pods, and every trace of pods on it belongs to one of
// them. old are the reservations of before, by address.
func (r *rig) settled(node string, old map[string]string) error {
	return await(r.ctx, node+" to be as it should", 3*time.Minute, func() error {
		var n struct {
			Status struct{ Conditions []condition }
		}
		if err := r.api.get(r.ctx, "/api/v1/nodes/"+node, &n); err != nil {
			return err
		}
		if !is(n.Status.Conditions, "Ready") {
			return errors.New("it is not Ready")
		}
		all, err := r.api.pods(r.ctx, "", "")
		if err != nil {
			return err
		}
		held, err := r.o.reservations(node)
		if err != nil {
			return err
		}
		for addr, id := range held {
			if old[addr] == id {
				return fmt.Errorf("%s is still reserved for lost sandbox %s", addr, id)
			}
		}
		return r.judgePods(node, all, held)
	})
}

// judgePods compares the pods of a node with its reservations and interfaces.
func (r *rig) judgePods(node string, all []pod, held map[string]string) error {
	owner, mine := map[string]string{}, 0
	left := maps.Clone(held)
	for _, p := range all {
		if p.Spec.NodeName == node && !p.ready() {
			return fmt.Errorf("pod %s is %s and not Ready", p.Metadata.Name, p.Status.Phase)
		}
		if p.Spec.HostNetwork {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if other := owner[ip.IP]; other != "" {
				return fmt.Errorf("%s belongs to %s and %s", ip.IP, other, p.Metadata.Name)
			}
			owner[ip.IP] = p.Metadata.Name
			if p.Spec.NodeName != node {
				continue
			}
			if held[ip.IP] == "" {
				return fmt.Errorf("%s of pod %s is not reserved", ip.IP, p.Metadata.Name)
			}
			delete(left, ip.IP)
		}
		if p.Spec.NodeName == node {
			mine++
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("no pod has the reserved addresses %v", slices.Sorted(maps.Keys(left)))
	}
	links, err := r.o.output(r.ctx, node, true, "sh", "-c", "ls /sys/class/net | grep -c '^brd' || true")
	if err != nil {
		return err
	}
	if links = strings.TrimSpace(links); links != fmt.Sprint(mine) {
		return fmt.Errorf("%s interfaces of pods for %d pods", links, mine)
	}
	return nil
}

// faultStaleNode deletes a Node, of a machine that does not exist, while the agent of every other node is
// down: what the agents had for it has to go at their next start.
func faultStaleNode(r *rig) error {
	before, err := r.kernels()
	if err != nil {
		return err
	}
	defer r.o.kubectl(context.WithoutCancel(r.ctx), "delete", "node", ghost, "--ignore-not-found")
	if err := r.makeGhost(); err != nil {
		return err
	}
	err = await(r.ctx, "routes to the new node", 30*time.Second, func() error { return r.ghostIn(before, true) })
	r.verdict(err == nil, "a node that joins is reached from every other%s", because(err))
	if err := r.leftBehind(); err != nil {
		return err
	}
	for i := range r.o.Nodes {
		// Without a kubelet nobody starts the agent again.
		if _, err := ask(r.ctx, r.o, nodeName(i+1), request{Stop: "kubelet", Signal: 15}); err != nil {
			return err
		}
		if err := r.killAgent(nodeName(i + 1)); err != nil {
			return err
		}
	}
	_, err = r.o.kubectl(r.ctx, "delete", "node", ghost)
	if err == nil {
		err = r.ghostIn(before, true)
		r.verdict(err == nil, "what led to it stays while the agents are down%s", because(err))
		err = nil
	}
	for i := range r.o.Nodes {
		err = joinErr(err, start(context.WithoutCancel(r.ctx), r.o, nodeName(i+1), r.o.kubelet(i+1)))
	}
	if err != nil {
		return err
	}
	err = await(r.ctx, "nothing of it to be left", time.Minute, func() error { return r.ghostIn(before, false) })
	r.verdict(err == nil, "the agents are up again: no route, neighbour or forwarding entry of it is left%s", because(err))
	return r.judgeTraffic("agents down, a node deleted meanwhile")
}

const ghost = "ghost"

// makeGhost makes a Node without a machine. The controller manager gives it pod CIDRs.
func (r *rig) makeGhost() error {
	var addresses []any
	for _, f := range r.o.families() {
		addresses = append(addresses, map[string]any{"type": "InternalIP", "address": f.node(maxNodes).String()})
	}
	node := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": ghost}, "spec": map[string]any{"unschedulable": true}}
	if err := r.api.do(r.ctx, "POST", "/api/v1/nodes", node, nil); err != nil {
		return err
	}
	patch := map[string]any{"status": map[string]any{"addresses": addresses}}
	return r.api.do(r.ctx, "PATCH", "/api/v1/nodes/"+ghost+"/status", patch, nil)
}

// ghostIn returns an error unless the overlays of all nodes have something more than before, or nothing.
func (r *rig) ghostIn(before map[string]snapshot, want bool) error {
	now, err := r.kernels()
	if err != nil {
		return err
	}
	for node, s := range now {
		more := s.overlay().missing(before[node].overlay())
		if want && len(more) < 3*len(r.o.Families) {
			return fmt.Errorf("%s has %d entries for it: %s", node, len(more), few(more))
		}
		if !want && len(more) > 0 {
			return fmt.Errorf("%s has %s", node, few(more))
		}
	}
	return nil
}
