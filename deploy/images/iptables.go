package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// The agent calls iptables-save and iptables-restore of both variants in service mode iptables. They are
// Debian's, taken out of its packages, which apt checks against the archive's signature.
const iptablesPackage = "iptables"

// iptablesPrograms are links to the two programs that are all of them, below usr/sbin. Plain names, without
// a variant, are left out: which one they mean differs from node to node.
func iptablesPrograms() (out []string) {
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, variant := range []string{"-nft", "-legacy"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				out = append(out, "usr/sbin/"+family+variant+verb)
			}
		}
	}
	return out
}

// isExtension reports whether a file is a match or target of iptables. All are wanted: iptables-save has to
// print the rules of others too. Those of ebtables and arptables are not.
func isExtension(name string) bool {
	dir, base := path.Split(name)
	return path.Base(dir) == "xtables" && strings.HasSuffix(base, ".so") &&
		(strings.HasPrefix(base, "libxt_") || strings.HasPrefix(base, "libipt_") || strings.HasPrefix(base, "libip6t_"))
}

// entry is a file of a package. Its name has no slash at the front, and usr/lib in the place of lib, as on
// every Debian whose /lib is a link.
type entry struct {
	link string // target of a symbolic link; "" = a file
	mode int64
	data []byte
	from string // package
}

// debs opens packages: their files, and the packages they depend on.
type debs func(names []string) (files map[string]entry, depends []string, err error)

// closure is a set of files with all that they are linked to.
type closure struct {
	have  map[string]entry // of all packages that were opened
	want  map[string]bool
	lacks []string // libraries that no package had so far
}

// iptablesFiles returns what an image needs to run iptables, sorted by name, and the packages it is from.
// Dependencies are opened as long as a library is missing.
func iptablesFiles(open debs) (out []file, packages []string, err error) {
	c := &closure{have: map[string]entry{}}
	opened := map[string]bool{}
	for next := []string{iptablesPackage}; ; {
		files, depends, err := open(next)
		if err != nil {
			return nil, nil, err
		}
		for _, pkg := range next {
			opened[pkg] = true
		}
		maps.Copy(c.have, files)
		if err := c.close(); err != nil {
			return nil, nil, err
		}
		if len(c.lacks) == 0 {
			out, err := c.files()
			return out, c.packages(), err
		}
		slices.Sort(depends)
		next = slices.DeleteFunc(slices.Compact(depends), func(pkg string) bool { return opened[pkg] })
		if len(next) == 0 {
			return nil, nil, fmt.Errorf("package %s with what it depends on lacks %s", iptablesPackage, strings.Join(c.lacks, ", "))
		}
	}
}

// close works the set out anew from what the packages have.
func (c *closure) close() error {
	c.want, c.lacks = map[string]bool{}, nil
	for _, p := range iptablesPrograms() {
		if err := c.add(p); err != nil {
			return err
		}
	}
	for name := range c.have {
		if isExtension(name) {
			if err := c.add(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// add takes a file in, with what it is a link to or linked with.
func (c *closure) add(name string) error {
	if c.want[name] {
		return nil
	}
	e, ok := c.have[name]
	if !ok {
		return fmt.Errorf("no package has the file %s", name)
	}
	c.want[name] = true
	if e.link != "" {
		return c.add(target(name, e.link))
	}
	f, err := elf.NewFile(bytes.NewReader(e.data))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, l := range libraries {
		if at, ok := c.library(l); !ok {
			c.lacks = append(c.lacks, l)
		} else if err := c.add(at); err != nil {
			return err
		}
	}
	loader, err := interpreter(f)
	if err != nil || loader == "" {
		return err
	}
	loader = merged(strings.TrimPrefix(loader, "/"))
	if _, ok := c.have[loader]; !ok {
		c.lacks = append(c.lacks, loader)
		return nil
	}
	return c.add(loader)
}

// library finds a shared library in the folder where Debian's loader looks: usr/lib/TRIPLET.
func (c *closure) library(soname string) (string, bool) {
	for name := range c.have {
		if dir, base := path.Split(name); base == soname && path.Dir(path.Clean(dir)) == "usr/lib" {
			return name, true
		}
	}
	return "", false
}

// files returns the set, with the licences of its packages and the links by which programs find their loader.
func (c *closure) files() (out []file, err error) {
	for _, pkg := range c.packages() {
		c.want["usr/share/doc/"+pkg+"/copyright"] = true
	}
	for name := range c.want {
		e, ok := c.have[name]
		if !ok {
			return nil, fmt.Errorf("no package has the file %s", name)
		}
		out = append(out, file{to: "/" + name, data: e.data, link: e.link, mode: e.mode})
	}
	for _, top := range []string{"lib", "lib64"} {
		if slices.ContainsFunc(out, func(f file) bool { return strings.HasPrefix(f.to, "/usr/"+top+"/") }) {
			out = append(out, file{to: "/" + top, link: "usr/" + top})
		}
	}
	slices.SortFunc(out, func(a, b file) int { return strings.Compare(a.to, b.to) })
	return out, nil
}

// packages returns those that files are taken from.
func (c *closure) packages() (out []string) {
	for name := range c.want {
		out = append(out, c.have[name].from)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// target is where a link leads, as a name of the set.
func target(name, link string) string {
	if !strings.HasPrefix(link, "/") {
		link = path.Join("/", path.Dir(name), link)
	}
	return merged(strings.TrimPrefix(link, "/"))
}

// merged returns a path with lib, lib64, bin and sbin below usr, where all of them have been since Debian 12.
func merged(name string) string {
	name = path.Clean(name)
	switch top, _, _ := strings.Cut(name, "/"); top {
	case "lib", "lib64", "bin", "sbin":
		return "usr/" + name
	}
	return name
}

// interpreter returns the path of the loader that a program asks for; "" for a library.
func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			data, err := io.ReadAll(p.Open())
			return strings.TrimRight(string(data), "\x00"), err
		}
	}
	return "", nil
}
