package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipset"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// policyPatience bounds the wait for the agent, which itself answers within five seconds.
const policyPatience = 8 * time.Second

// isolate tells the agent of a new pod and returns when its policies are in the
// kernel. A pod that the agent does not know yet, or that comes while no agent
// runs or answers, is connected all the same: the kernel cuts it off until the agent lets
// it in. But when there is nothing in the kernel to cut it off, as after a
// restart of the machine, or its address is still known there as that of a pod before, whose
// policies it would get, it has to wait for the agent; and always where the
// configuration says so.
func isolate(conf *config, args *skel.CmdArgs, pod podID, host string, leases []ipam.Lease) error {
	if conf.PolicySocket == "" || pod.name == "" {
		return nil
	}
	err := register(conf.PolicySocket, pod, host, leases)
	if err == nil {
		return nil
	}
	if conf.PolicyFirst {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("the agent on %s has not confirmed the policies of pod %s, and policyFirst makes it wait for that", conf.PolicySocket, pod.name), err.Error())
	}
	conf.Log.Warn("the agent has not confirmed the pod's policies", "pod", pod.name, "container", args.ContainerID, "err", err)
	if missing := cutOff(leases); missing != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%v, and the agent has not confirmed the policies of pod %s on %s", missing, pod.name, conf.PolicySocket), err.Error())
	}
	return nil
}

// register asks the agent, by HTTP/1.1, which is little enough to be written by
// hand: a client would make the plugin twice as large.
func register(socket string, pod podID, host string, leases []ipam.Lease) error {
	namespace, name, _ := strings.Cut(pod.name, "/")
	body, err := json.Marshal(map[string]any{"namespace": namespace, "name": name, "uid": pod.uid, "link": host, "addresses": addrsOf(leases)})
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("unix", socket, policyPatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(policyPatience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "POST /attachments HTTP/1.1\r\nHost: netagent\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		return err
	}
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the agent gave no answer: %w", err)
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return fmt.Errorf("the agent answered %q", strings.TrimSpace(status))
	}
	return nil
}

// cutOff is no error when the kernel refuses what is for the addresses or from them, by the policies of one kind, nftables or
// iptables rules, that knows them of no pod.
func cutOff(leases []ipam.Lease) error {
	for _, l := range leases {
		known, err := policyTables(l.Addr)
		if err != nil {
			var other error
			if known, other = policyChains(l.Addr); other != nil {
				return fmt.Errorf("no policy is in force on this node (%w)", errors.Join(err, other))
			}
		}
		if known {
			return fmt.Errorf("address %s still has the policies of a pod before", l.Addr)
		}
	}
	return nil
}

// policyTables asks the tables of policy whether they know an address as a pod's. It is an error when there are none.
func policyTables(a netip.Addr) (known bool, err error) {
	conn, err := tables.Open()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	family := desired.NFTIPv6
	if a.Is4() {
		family = desired.NFTIPv4
	}
	if _, err := conn.Comment(family, desired.PolicyTable); err != nil {
		return false, err
	}
	for _, set := range []string{desired.PolicyEgress, desired.PolicyIngress} {
		keys, err := conn.Keys(family, desired.PolicyTable, set)
		if err != nil {
			return false, err
		}
		known = known || slices.Contains(keys, string(a.AsSlice()))
	}
	return known, nil
}

// policyChains asks the sets that iptables rules of policy refer to, as long as nobody flushes them. That takes no
// tool. It is an error when no rule does.
func policyChains(a netip.Addr) (known bool, err error) {
	conn, err := ipset.Open()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	inForce := false
	for _, prefix := range xt.PolicyPods(a.Is6()) {
		list, err := conn.List(prefix)
		if err != nil {
			return false, err
		}
		for _, x := range list {
			inForce = inForce || x.References > 0 && strings.HasPrefix(x.Name, xt.PolicySet(a.Is6()))
			members, err := conn.Read(x.IPSet)
			if err != nil {
				return false, err
			}
			known = known || slices.ContainsFunc(members, func(m desired.IPSetMember) bool { return m.Prefix.Addr() == a })
		}
	}
	if !inForce {
		return false, errors.New("no rule refers to the sets of iptables mode")
	}
	return known, nil
}
