package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// What a cluster is made of. The modules in build/ pin the same versions; build_test.go compares.
const (
	kubernetesVersion = "v1.36.3"
	etcdVersion       = "v3.6.8"
	containerdVersion = "v2.3.7"
)

func versionKey() string {
	return "kubernetes-" + kubernetesVersion + "_etcd-" + etcdVersion + "_containerd-" + containerdVersion
}

// program is one binary and how it is built.
type program struct {
	name, module, pkg string
	tags, ldflags     string
	test              bool // a test binary
}

const (
	kubeVersionVar = "-X k8s.io/component-base/version."
	// Clients that find no version in a server take it for one that can do nothing.
	kubeLD = "-s -w " + kubeVersionVar + "gitVersion=" + kubernetesVersion + " " + kubeVersionVar + "gitMajor=1 " + kubeVersionVar + "gitMinor=36"
	ctrPkg = "github.com/containerd/containerd/v2/"
	ctrLD  = "-s -w -X " + ctrPkg + "version.Version=" + containerdVersion
	// These snapshotters want C libraries; nodes use overlayfs.
	ctrTags = "no_btrfs no_zfs no_devmapper no_aufs"
)

// programs are in the order in which a cluster needs them.
func programs() []program {
	out := []program{
		{name: "kube-apiserver", module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kube-apiserver", ldflags: kubeLD},
		{name: "etcd", module: "etcd", pkg: "go.etcd.io/etcd/server/v3", ldflags: "-s -w"},
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"} {
		out = append(out, program{name: name, module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/" + name, ldflags: kubeLD})
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		out = append(out, program{name: name, module: "containerd", pkg: ctrPkg + "cmd/" + name, tags: ctrTags, ldflags: ctrLD})
	}
	return append(out, program{name: "agnhost", module: "kubernetes", pkg: "k8s.io/kubernetes/test/images/agnhost", ldflags: kubeLD},
		program{name: "pause", pkg: "./pause", ldflags: "-s -w"})
}

// suite is upstream's end-to-end suite, which only `e2e` needs.
var suite = program{name: "e2e.test", module: "kubernetes", pkg: "k8s.io/kubernetes/test/e2e", ldflags: kubeLD, test: true}

// build makes the programs that the cache lacks. They appear under their name only when complete.
func build(ctx context.Context, o *options, all ...program) error {
	if err := os.MkdirAll(filepath.Join(o.Cache, "bin"), 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w; choose another with --cache", err)
	}
	for _, p := range all {
		if _, err := os.Stat(o.bin(p.name)); err == nil {
			continue
		}
		start := time.Now()
		fmt.Printf("building %s\n", p.name)
		if err := buildOne(ctx, o, p); err != nil {
			return err
		}
		fmt.Printf("built %s in %s\n", p.name, time.Since(start).Round(time.Second))
	}
	return nil
}

func buildOne(ctx context.Context, o *options, p program) error {
	dir := filepath.Join(o.Root, "test/cluster")
	if p.module != "" {
		dir = filepath.Join(dir, "build", p.module)
	}
	next := o.bin(p.name) + ".new"
	verb := []string{"build"}
	if p.test {
		verb = []string{"test", "-c"}
	}
	cmd := exec.CommandContext(ctx, "go", append(verb, "-mod=readonly", "-tags", p.tags, "-ldflags", p.ldflags, "-o", next, p.pkg)...)
	cmd.Dir = dir
	// A workspace of the caller would override the versions that build/ pins.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", p.name, dir, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(next, o.bin(p.name))
}

func runBuild(ctx context.Context, args []string) error {
	o := &options{}
	if _, err := parse(flags("build", o), o, args); err != nil {
		return err
	}
	if err := build(ctx, o, programs()...); err != nil {
		return err
	}
	if err := buildImages(ctx, o); err != nil {
		return err
	}
	fmt.Println("programs and images are in", o.Cache)
	return nil
}
