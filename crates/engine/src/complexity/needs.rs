//! Which features types and instructions need. What is not valid with any features may need any.

use wasmparser::{
    AbstractHeapType, BlockType, CompositeInnerType, CoreType, HeapType, ModuleTypeDeclaration, Operator, RecGroup,
    RefType, StorageType, TypeRef, ValType,
};

use crate::Features;

impl Features {
    pub(super) fn need_group(&mut self, group: &RecGroup) {
        // A group that is written as one, whatever its length.
        self.garbage_collection |= group.is_explicit_rec_group();
        for ty in group.types() {
            self.garbage_collection |= !ty.is_final || ty.supertype_idx.is_some();
            match &ty.composite_type.inner {
                CompositeInnerType::Func(function) => {
                    function.params().iter().chain(function.results()).for_each(|ty| self.need_value(*ty));
                }
                CompositeInnerType::Struct(_) | CompositeInnerType::Array(_) => self.garbage_collection = true,
                CompositeInnerType::Cont(_) => {}
            }
            let fields = match &ty.composite_type.inner {
                CompositeInnerType::Struct(fields) => &*fields.fields,
                CompositeInnerType::Array(element) => std::slice::from_ref(&element.0),
                _ => &[],
            };
            for field in fields {
                if let StorageType::Val(ty) = field.element_type {
                    self.need_value(ty);
                }
            }
        }
    }

    pub(super) fn need_core_type(&mut self, ty: &CoreType<'_>) {
        match ty {
            CoreType::Rec(group) => self.need_group(group),
            CoreType::Module(declarations) => {
                for declaration in declarations {
                    match declaration {
                        ModuleTypeDeclaration::Type(group) => self.need_group(group),
                        ModuleTypeDeclaration::Export { ty, .. } => self.need_item(ty),
                        ModuleTypeDeclaration::Import(import) => self.need_item(&import.ty),
                        ModuleTypeDeclaration::OuterAlias { .. } => {}
                    }
                }
            }
        }
    }

    /// What is imported or exported.
    pub(super) fn need_item(&mut self, ty: &TypeRef) {
        match ty {
            TypeRef::Table(table) => self.need_reference(table.element_type),
            TypeRef::Global(global) => self.need_value(global.content_type),
            TypeRef::Tag(_) => self.exceptions = true,
            TypeRef::Func(_) | TypeRef::FuncExact(_) | TypeRef::Memory(_) => {}
        }
    }

    pub(super) fn need_value(&mut self, ty: ValType) {
        if let ValType::Ref(reference) = ty {
            self.need_reference(reference);
        }
    }

    pub(super) fn need_reference(&mut self, reference: RefType) {
        self.need_heap_type(reference.heap_type());
    }

    fn need_heap_type(&mut self, ty: HeapType) {
        let HeapType::Abstract { ty, .. } = ty else { return };
        match ty {
            AbstractHeapType::Func | AbstractHeapType::Cont | AbstractHeapType::NoCont => {}
            AbstractHeapType::Exn | AbstractHeapType::NoExn => self.exceptions = true,
            _ => self.garbage_collection = true,
        }
    }

    fn need_block(&mut self, ty: BlockType) {
        if let BlockType::Type(ty) = ty {
            self.need_value(ty);
        }
    }

    pub(super) fn need_operator(&mut self, operator: &Operator<'_>) {
        match operator {
            Operator::Block { blockty: ty } | Operator::Loop { blockty: ty } | Operator::If { blockty: ty } => {
                self.need_block(*ty);
            }
            Operator::TryTable { try_table } => {
                self.exceptions = true;
                self.need_block(try_table.ty);
            }
            Operator::RefNull { hty } => self.need_heap_type(*hty),
            Operator::TypedSelect { ty } => self.need_value(*ty),
            Operator::TypedSelectMulti { tys } => tys.iter().for_each(|ty| self.need_value(*ty)),
            _ => self.need_proposal(operator),
        }
    }
}

/// The features that the instructions of a proposal need; none for those that all engines have, or none has.
macro_rules! needed {
    (gc, $features:ident) => {
        $features.garbage_collection = true
    };
    (exceptions, $features:ident) => {
        $features.exceptions = true
    };
    ($proposal:ident, $features:ident) => {};
}

macro_rules! need_proposal {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $ty:ty),* })? => $visit:ident ($($arity:tt)*))*) => {
        impl Features {
            fn need_proposal(&mut self, operator: &Operator<'_>) {
                match operator {
                    $(Operator::$op { .. } => { needed!($proposal, self); })*
                    // wasmparser may know more.
                    _ => {}
                }
            }
        }
    };
}

wasmparser::for_each_operator!(need_proposal);
