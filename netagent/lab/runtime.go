package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/netagent/lab/cluster"
	"github.com/braidnet/braid/netagent/lab/standin"
)

// podRuntime does for pods what a container runtime does: a network namespace, the CNI call from
// within the node's namespace, and the pod's resolv.conf and hosts.
type podRuntime struct {
	o       *Options
	p       paths
	waitFor func(context.Context, func() bool) error

	mu   sync.Mutex
	live map[string]*livePod // by podKey
}

// livePod is a pod that Start made.
type livePod struct {
	node   string
	server *standin.Server
}

func newPodRuntime(d *daemon) *podRuntime {
	return &podRuntime{o: d.o, p: d.p, waitFor: d.waitFor, live: map[string]*livePod{}}
}

func (r *podRuntime) node(name string) (node, error) {
	nodes := r.o.nodes()
	i := slices.IndexFunc(nodes, func(n node) bool { return n.name == name })
	if i < 0 {
		return node{}, fmt.Errorf("no node %q in this lab: it has n1 to n%d", name, r.o.Nodes)
	}
	return nodes[i], nil
}

// Start makes the pod's sandbox and returns the addresses the plugin gave it. It waits for the
// node's CNI configuration, which the agent writes when the node can carry traffic. On failure
// nothing is left. Errors do not name the pod: the control plane does.
func (r *podRuntime) Start(ctx context.Context, pod cluster.PodSandbox) (ips []netip.Addr, err error) {
	n, err := r.node(pod.Node)
	if err != nil {
		return nil, err
	}
	s := &sandbox{Namespace: pod.Namespace, Name: pod.Name, Node: n.name, Hostname: podHostname(pod)}
	if pod.HostNetwork {
		s.NetNS, s.IPs, s.Hostname = nsPath(r.p.nodeNS(n.name)), n.ips, n.name
	} else {
		s.NetNS = nsPath(r.p.podNS(pod.Namespace, pod.Name))
		if s.IPs, err = r.connect(ctx, pod, s.NetNS); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, r.disconnect(context.WithoutCancel(ctx), pod))
			}
		}()
	}
	server, err := standin.Serve(s.NetNS, standinInfo(pod, s.IPs), standinPorts(pod))
	if err != nil {
		return nil, err
	}
	if err := writePodFiles(r.o, pod, s); err != nil {
		return nil, errors.Join(err, server.Close(), os.RemoveAll(r.p.pod(pod.Namespace, pod.Name)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[podKey(pod.Namespace, pod.Name)] = &livePod{n.name, server}
	return s.IPs, nil
}

// Stop removes what Start made. It is safe to call again, and for a pod that never started.
func (r *podRuntime) Stop(ctx context.Context, pod cluster.PodSandbox) error {
	// The folder goes first: `exec` must not enter a sandbox that is being removed.
	errs := []error{os.RemoveAll(r.p.pod(pod.Namespace, pod.Name))}
	key := podKey(pod.Namespace, pod.Name)
	r.mu.Lock()
	live := r.live[key]
	delete(r.live, key)
	r.mu.Unlock()
	if live != nil {
		errs = append(errs, live.server.Close())
	}
	if !pod.HostNetwork {
		errs = append(errs, r.disconnect(ctx, pod))
	}
	return errors.Join(errs...)
}

// SetPorts changes what a running pod serves.
func (r *podRuntime) SetPorts(_ context.Context, pod cluster.PodSandbox) error {
	r.mu.Lock()
	live := r.live[podKey(pod.Namespace, pod.Name)]
	r.mu.Unlock()
	if live == nil {
		return fmt.Errorf("pod %s/%s does not run", pod.Namespace, pod.Name)
	}
	return live.server.SetPorts(standinPorts(pod))
}

func standinInfo(pod cluster.PodSandbox, ips []netip.Addr) standin.Info {
	return standin.Info{Namespace: pod.Namespace, Name: pod.Name, Node: pod.Node, IPs: ips}
}

func standinPorts(pod cluster.PodSandbox) (out []standin.Port) {
	for _, p := range pod.Ports {
		out = append(out, standin.Port{Name: p.Name, Number: p.Number, Protocol: string(p.Protocol)})
	}
	return out
}

// podsOn returns how many pods run on a node.
func (r *podRuntime) podsOn(node string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.live {
		if p.node == node {
			n++
		}
	}
	return n
}

// connect makes the pod's namespace and has the plugin connect it.
func (r *podRuntime) connect(ctx context.Context, pod cluster.PodSandbox, netns string) (ips []netip.Addr, err error) {
	err = r.waitFor(ctx, func() bool { return r.status(pod.Node) })
	if err != nil {
		return nil, fmt.Errorf("wait for the node's CNI configuration: %w", err)
	}
	name := r.p.podNS(pod.Namespace, pod.Name)
	if err := createNS(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.disconnect(context.WithoutCancel(ctx), pod))
		}
	}()
	if err := inNS(netns, loopbackUp); err != nil {
		return nil, err
	}
	err = r.cni(pod, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		result, err := c.AddNetworkList(ctx, list, rt)
		if err != nil {
			return fmt.Errorf("CNI ADD: %w", err)
		}
		full, err := types100.NewResultFromResult(result)
		if err != nil {
			return fmt.Errorf("CNI ADD: its result: %w", err)
		}
		for _, ip := range full.IPs {
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				ips = append(ips, a.Unmap())
			}
		}
		if len(ips) == 0 {
			return errors.New("CNI ADD: its result has no address")
		}
		return nil
	})
	return ips, err
}

// disconnect has the plugin disconnect the pod, and removes its namespace in any case.
func (r *podRuntime) disconnect(ctx context.Context, pod cluster.PodSandbox) error {
	var del error
	if _, ok := nsIDOf(nsPath(r.p.podNS(pod.Namespace, pod.Name))); ok {
		del = r.cni(pod, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
			if err := c.DelNetworkList(ctx, list, rt); err != nil {
				return fmt.Errorf("CNI DEL: %w", err)
			}
			return nil
		})
	}
	return errors.Join(del, deleteNS(r.p.podNS(pod.Namespace, pod.Name)))
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// conflist returns the CNI configuration a runtime on the node would use: the first file by name.
func (r *podRuntime) conflist(node string) (*libcni.NetworkConfigList, error) {
	dir := r.p.node(node, "cni")
	files, err := libcni.ConfFiles(dir, []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s", dir)
	}
	return libcni.NetworkConfFromFile(slices.Min(files))
}

// status tells whether pods can be made on a node, as CNI's STATUS would.
func (r *podRuntime) status(node string) bool {
	_, err := r.conflist(node)
	return err == nil && exists(filepath.Join(r.p.node(node, "run"), "ready"))
}

// cni calls f inside the node's namespace, where the plugin that libcni starts then runs too.
func (r *podRuntime) cni(pod cluster.PodSandbox, f func(*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	list, err := r.conflist(pod.Node)
	if err != nil {
		return err
	}
	c := libcni.NewCNIConfigWithCacheDir([]string{r.o.BinDir}, r.p.node(pod.Node, "cni-cache"), nil)
	id := containerID(pod)
	rt := &libcni.RuntimeConf{
		ContainerID: id, NetNS: nsPath(r.p.podNS(pod.Namespace, pod.Name)), IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", pod.Namespace}, {"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", id}, {"K8S_POD_UID", pod.UID},
		},
		CapabilityArgs: capabilityArgs(pod),
	}
	return inNS(nsPath(r.p.nodeNS(pod.Node)), func() error { return f(c, list, rt) })
}

// capabilityArgs is what a runtime tells plugins that have the capability (CNI conventions). Without host
// ports it says nothing, as runtimes do.
func capabilityArgs(pod cluster.PodSandbox) map[string]any {
	var list []map[string]any
	for _, h := range pod.HostPorts {
		list = append(list, map[string]any{
			"hostPort": h.Host, "containerPort": h.Container, "protocol": strings.ToLower(string(h.Protocol)), "hostIP": h.Addr,
		})
	}
	if list == nil {
		return nil
	}
	return map[string]any{"portMappings": list}
}

// containerID is one id per sandbox: a pod made anew under its old name has another UID, and one whose sandbox was lost
// makes another attempt.
func containerID(pod cluster.PodSandbox) string {
	text := pod.Namespace + "/" + pod.Name + "/" + pod.UID
	if pod.Attempt > 0 {
		text += fmt.Sprintf("/%d", pod.Attempt)
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func podHostname(pod cluster.PodSandbox) string {
	if pod.Hostname != "" {
		return pod.Hostname
	}
	const most = 63 // of a host name, RFC 1123
	return pod.Name[:min(len(pod.Name), most)]
}
