package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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

// policyTable is the nftables table in which the agent has the policies of pods. Whoever is not in its
// maps is cut off.
const policyTable = "braid-policy"

// policyPatience bounds the wait for the agent, which itself answers within five seconds.
const policyPatience = 8 * time.Second

// isolate tells the agent of a new pod and returns when its policies are in the
// kernel. A pod that the agent does not know yet, or that comes while no agent
// runs, is connected all the same: the kernel cuts it off until the agent lets
// it in. But when there is nothing in the kernel to cut it off, as after a
// restart of the machine, it has to wait for the agent; and always where the
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
	if guarded, gerr := policyInForce(leases); !guarded {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no policy is in force on this node, and its agent does not answer on %s", conf.PolicySocket), errors.Join(err, gerr).Error())
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

// policyInForce reports whether the kernel has policies for each family of the pod, as nftables or as iptables rules.
func policyInForce(leases []ipam.Lease) (bool, error) {
	for _, l := range leases {
		tables, err := policyTables(l.Addr.Is4())
		if tables {
			continue
		}
		chains, other := policyChains(l.Addr.Is4())
		if !chains {
			return false, errors.Join(err, other)
		}
	}
	return true, nil
}

func policyTables(ipv4 bool) (bool, error) {
	conn, err := tables.Open()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	family := desired.NFTIPv6
	if ipv4 {
		family = desired.NFTIPv4
	}
	return conn.Exists(family, policyTable)
}

// policyChains asks for the set that iptables rules of policy refer to, as long as nobody flushes them. That takes no
// tool.
func policyChains(ipv4 bool) (bool, error) {
	conn, err := ipset.Open()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	list, err := conn.List(xt.PolicySet(!ipv4))
	return slices.ContainsFunc(list, func(x ipset.Info) bool { return x.References > 0 }), err
}
