package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const runtimeSocket = "/run/containerd/containerd.sock"

// containerdConfig is that of a node without systemd. The pause image is never pulled.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + runtimeSocket + `"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "` + pauseImage + `"
[plugins."io.containerd.cri.v1.runtime"]
  enable_selinux = false
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
  use_internal_loopback = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = false
`

// startNode brings up one node with its images, up to a running kubelet.
func startNode(ctx context.Context, o *options, i int) error {
	if err := startRuntime(ctx, o, i); err != nil {
		return err
	}
	name := nodeName(i)
	for _, file := range append([]string{o.testArchive()}, o.Images...) {
		if err := importImage(ctx, o, name, file); err != nil {
			return err
		}
	}
	return start(ctx, o, name, o.kubelet(i))
}

// startRuntime brings up one node as far as containerd.
func startRuntime(ctx context.Context, o *options, i int) error {
	name := nodeName(i)
	if err := openPlace(o, name); err != nil {
		return err
	}
	if err := writeNodeFiles(o, i); err != nil {
		return fmt.Errorf("write the settings of %s: %w", name, err)
	}
	if err := start(ctx, o, name, job{Name: "containerd", Argv: []string{nodeBin + "/containerd", "--config", "/var/lib/kubelet/containerd.toml"}}); err != nil {
		return err
	}
	return await(ctx, "containerd of "+name, time.Minute, func() error {
		if err := alive(ctx, o, name, "containerd"); err != nil {
			return err
		}
		_, err := o.output(ctx, name, true, nodeBin+"/ctr", "version")
		return err
	})
}

func (o *options) kubelet(i int) job {
	return job{Name: "kubelet", Argv: []string{
		nodeBin + "/kubelet", "--config=/var/lib/kubelet/config.json", "--kubeconfig=/var/lib/kubelet/kubeconfig",
		"--hostname-override=" + nodeName(i), "--node-ip=" + o.each(func(f family) string { return f.node(i).String() }), "--v=2",
	}}
}

// writeNodeFiles lays the settings of containerd and kubelet into the node's /var, and what pods with
// dnsPolicy Default get for a resolver: the control plane, which refuses at once.
func writeNodeFiles(o *options, i int) error {
	name := nodeName(i)
	kubelet := func(f string) string { return o.path(name, "var/lib/kubelet", f) }
	settings, err := json.MarshalIndent(o.kubeletConfig(), "", "  ")
	if err != nil {
		return err
	}
	resolv := "nameserver " + o.families()[0].control.String() + "\n"
	errs := []error{
		os.WriteFile(kubelet("containerd.toml"), []byte(containerdConfig), 0o644),
		os.WriteFile(kubelet("config.json"), settings, 0o644),
		os.WriteFile(kubelet("resolv.conf"), []byte(resolv), 0o644),
	}
	for from, to := range map[string]string{
		name + ".kubeconfig": "kubeconfig", "ca.crt": "ca.crt", name + "-serving.crt": "serving.crt", name + "-serving.key": "serving.key",
	} {
		data, err := os.ReadFile(o.pki(from))
		errs = append(errs, err, os.WriteFile(kubelet(to), data, 0o600))
	}
	return errors.Join(errs...)
}

// kubeletConfig leaves out what the machine cannot give every node: reserved resources, a systemd, and
// decisions by how full the one disk is.
func (o *options) kubeletConfig() map[string]any {
	gates := map[string]bool{}
	for _, g := range strings.FieldsFunc(o.Gates, func(r rune) bool { return r == ',' }) {
		name, value, _ := strings.Cut(g, "=")
		gates[name] = value == "true"
	}
	const dir = "/var/lib/kubelet/"
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": dir + "ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   dir + "serving.crt", "tlsPrivateKeyFile": dir + "serving.key",
		"clusterDNS": []netip.Addr{o.families()[0].dns}, "clusterDomain": "cluster.local", "resolvConf": dir + "resolv.conf",
		"containerRuntimeEndpoint": "unix://" + runtimeSocket,
		"cgroupDriver":             "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": []string{},
		"failCgroupV1": false, "failSwapOn": false, "localStorageCapacityIsolation": true,
		"evictionHard": map[string]string{}, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"staticPodPath":   dir + "manifests",
		"volumePluginDir": dir + "plugins-exec", "maxPods": 200, "featureGates": gates,
		// Shorter than the defaults, so that tests see changes soon.
		"syncFrequency": "10s", "nodeStatusUpdateFrequency": "4s",
	}
}

// importImage loads an archive into a node's containerd. The archive may lie anywhere on the machine.
func importImage(ctx context.Context, o *options, node, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd, err := o.command(ctx, node, true, nodeBin+"/ctr", "--namespace", "k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = f
	if _, err := run(cmd); err != nil {
		return fmt.Errorf("load %s into %s: %w", file, node, err)
	}
	return nil
}

// hostAgent runs the agent from bin/ as a program of the node, where there is no manifest to install it.
func hostAgent(ctx context.Context, o *options, i int) error {
	name := nodeName(i)
	for from, to := range map[string]string{"braid": "opt/cni/bin/braid", "netagent": "opt/netagent"} {
		if err := copyFile(filepath.Join(o.Root, "bin", from), o.path(name, to), 0o755); err != nil {
			return fmt.Errorf("install %s on %s: %w; `make build` makes it", from, name, err)
		}
	}
	if err := copyFile(o.kubeconfig(), o.path(name, "var/lib/kubelet/agent.kubeconfig"), 0o600); err != nil {
		return err
	}
	return start(ctx, o, name, job{Name: "netagent", Argv: []string{"/opt/netagent", "run", "--node", name, "--kubeconfig", "/var/lib/kubelet/agent.kubeconfig"}})
}

// copyFile replaces a file that may be in use.
func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// joinPods routes every node's pod addresses from the control plane, which reaches pods for proxies and
// webhooks, as the machine of a real one would.
func joinPods(ctx context.Context, o *options) error {
	hub, err := openSpace(o.nsName(control))
	if err != nil {
		return err
	}
	defer hub.close()
	for i := 1; i <= o.Nodes; i++ {
		name := nodeName(i)
		var text string
		err := await(ctx, "pod addresses of "+name, time.Minute, func() (err error) {
			if err := alive(ctx, o, name, "containerd", "kubelet"); err != nil {
				return err
			}
			text, err = o.kubectl(ctx, "get", "node", name, "-o", "jsonpath={.spec.podCIDRs[*]}")
			if err == nil && len(strings.Fields(text)) < len(o.Families) {
				err = fmt.Errorf("spec.podCIDRs is %q", text)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, s := range strings.Fields(text) {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return fmt.Errorf("node %s: spec.podCIDRs: %w", name, err)
			}
			for _, f := range o.families() {
				if f.control.Is4() != p.Addr().Is4() {
					continue
				}
				if err := hub.route(p, f.node(i)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// runcPresent says how to get the one program that the cache does not hold.
func runcPresent() error {
	if _, err := exec.LookPath("runc"); err != nil {
		return fmt.Errorf("%w: install the package runc", err)
	}
	return nil
}
